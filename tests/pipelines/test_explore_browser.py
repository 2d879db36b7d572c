"""The page of explore.py in a real Chromium: load, click, hear, neighbours, a sound that is dropped, a selection as
CSV, the static site."""

import base64
import csv
import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.embedded import embed
from helpers.explored import chromium, explored
from helpers.faults import PATIENCE

from ajepa.audio.sources import load_manifest
from pipelines import explore

pytestmark = pytest.mark.process

# Elements of the page and of the shadow roots in it.
DEEP = """
const all = (root) => [...root.querySelectorAll('*')].flatMap((e) => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e]);
const elements = all(document);
"""
PLAYERS = "elements.filter((e) => e.tagName == 'AUDIO' && !e.closest('#ajepa-search'))"


class Page:
    """A page with a map on it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.until("elements.some((e) => e.tagName == 'CANVAS') && document.body.innerText.includes('points')")
        self.canvas = self.ask("elements.find((e) => e.tagName == 'CANVAS').getBoundingClientRect().toJSON()")

    def ask(self, expression: str) -> Any:
        return self.driver.execute_script(f"{DEEP} return {expression}")

    def until(self, expression: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := self.ask(expression)):
            assert time.monotonic() < end, expression
            time.sleep(0.1)
        return found

    def click(self, x: float, y: float) -> None:
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        actions.w3c_actions.pointer_action.click()
        actions.perform()

    def click_a_point(self) -> str:
        """Click over the map until a clip plays; the address of its sound."""
        for i in range(4, 40):
            for j in range(2, 14):
                at = self.canvas["x"] + self.canvas["width"] * i / 44, self.canvas["y"] + self.canvas["height"] * j / 16
                self.click(*at)
                time.sleep(0.1)
                if self.ask(f"{PLAYERS}.some((e) => !e.paused)"):
                    return self.ask(f"{PLAYERS}.find((e) => !e.paused).currentSrc")
        raise AssertionError("no point was found")

    def press(self, text: str) -> None:
        self.until(f"elements.some((e) => e.tagName == 'BUTTON' && e.innerText.includes('{text}'))")
        self.ask(f"elements.findLast((e) => e.tagName == 'BUTTON' && e.innerText.includes('{text}')).click()")

    def drop(self, path: Path) -> None:
        """Drop a file on the page."""
        self.driver.execute_script(
            """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], arguments[1]));
            document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: dropped, bubbles: true}));""",
            base64.b64encode(path.read_bytes()).decode(),
            path.name,
        )


@pytest.fixture(scope="module")
def embeddings(sounds, tmp_path_factory):
    return embed(
        load_manifest("folder", str(sounds), labels_from_folders=True), tmp_path_factory.mktemp("page") / "emb"
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Any]:
    pytest.importorskip("embedding_atlas", reason="embedding-atlas is not installed here")
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(**{"download.default_directory": str(downloads)}) as found:
        found.downloads = downloads
        yield found


@pytest.fixture(scope="module")
def address(driver, embeddings):
    with explored(embeddings.path) as (found, _):
        yield found


@pytest.fixture
def page(driver, address) -> Page:
    driver.get("about:blank")
    return Page(driver, address)


def test_a_click_plays_the_clip_and_shows_its_log_mel(page, address):
    sound = page.click_a_point()
    assert sound.startswith(f"{address}sound/")
    page.until(f"{PLAYERS}.some((e) => e.currentTime > 0.1)")
    picture = sound.replace("/sound/", "/log-mel/").replace(".wav", ".png")
    page.until(f"elements.some((e) => e.tagName == 'IMG' && e.src == '{picture}' && e.naturalHeight == 128)")


def test_a_clip_shows_its_neighbours(page):
    row = page.click_a_point().rpartition("/")[2].removesuffix(".wav")
    page.press("Nearest Neighbors")
    page.until(f"document.body.innerText.includes('Neighbors of #{row}')")
    page.until("document.body.innerText.includes('15 results')")


def test_a_sound_that_is_dropped_finds_its_neighbours_and_selects_them(page, sounds):
    page.drop(sounds / "tone/tone 3.wav")
    first = page.until("document.querySelector('#ajepa-search li')?.innerText")
    assert first.split()[:4] == ["1.000", "tone", "tone/tone", "3.wav"]
    page.press("on the map")
    page.until("document.body.innerText.includes('12 / 20 points')")
    assert page.ask("document.querySelectorAll('#ajepa-search li').length") == 12  # after the reload


def test_what_is_dropped_and_no_sound_says_why(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no sound")
    page.drop(tmp_path / "notes.txt")
    assert "notes.txt: decode" in page.until("document.querySelector('#ajepa-said:not([hidden])')?.textContent")


def test_a_selection_is_kept_as_csv(page, driver, sounds):
    page.drop(sounds / "tone/tone 3.wav")
    page.until("document.querySelector('#ajepa-search li')")
    page.press("on the map")
    page.until("document.body.innerText.includes('12 / 20 points')")
    page.ask("elements.find((e) => e.tagName == 'BUTTON' && e.title == 'Export Selection').click()")
    page.until(
        """elements.filter((e) => e.tagName == 'SELECT').some((e) => {
          const csv = [...e.options].findIndex((o) => o.text == 'CSV');
          if (csv < 0) return false;
          e.selectedIndex = csv;
          e.dispatchEvent(new Event('change', {bubbles: true}));
          return true;
        })"""
    )
    page.ask("elements.find((e) => e.tagName == 'BUTTON' && e.title == 'Export the selected points').click()")
    end = time.monotonic() + PATIENCE
    while not (found := list(driver.downloads.glob("*.csv"))):
        assert time.monotonic() < end
        time.sleep(0.1)
    rows = list(csv.DictReader(found[0].read_text().splitlines()))
    assert len(rows) == 12 and "tone/tone 3.wav" in {row["clip_id"] for row in rows}


def test_the_static_site_plays_too(driver, embeddings, tmp_path):
    explore.main(explore.parse_args([embeddings.path, "--export", str(tmp_path / "site"), "--previews", "1"]))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver.get("about:blank")
        page = Page(driver, f"http://127.0.0.1:{server.server_port}/")
        page.click_a_point()
        page.until(f"{PLAYERS}.some((e) => e.currentTime > 0.1)")
        assert not page.ask("document.querySelector('#ajepa-search')")
        server.shutdown()
