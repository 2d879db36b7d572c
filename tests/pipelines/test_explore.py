"""explore.py: what its server answers, its static site, and the mistakes it names."""

import io
import json
import shutil
import signal
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.embedded import embed
from helpers.explored import explored
from helpers.faults import PATIENCE, ROOT
from PIL import Image

from ajepa import storage
from ajepa.audio.sources import load_manifest
from ajepa.inference.embeddings import EMBEDDINGS_JSON
from pipelines import explore
from pipelines.cli.command import run_command
from pipelines.explorer.site import PAGE, VERSION, find_viewer


@pytest.fixture(scope="module", autouse=True)
def _viewer() -> Path:
    pytest.importorskip("embedding_atlas", reason="embedding-atlas is not installed here")
    return find_viewer()


@pytest.fixture(scope="module")
def embeddings(sounds, tmp_path_factory):
    """20 clips embedded by `nano`, of sounds that a test may move away. Read only."""
    folder = tmp_path_factory.mktemp("explore")
    copied = shutil.copytree(sounds, folder / "sounds")
    return embed(load_manifest("folder", str(copied), labels_from_folders=True), folder / "emb")


@pytest.fixture
def copy(embeddings, tmp_path) -> str:
    return str(shutil.copytree(embeddings.path, tmp_path / "emb"))


@pytest.fixture(scope="module")
def address(embeddings):
    with explored(embeddings.path) as (found, _):
        yield found


def get(url: str, **headers: str) -> tuple[int, bytes, Message]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def table_of(address: str) -> list[dict]:
    return pq.read_table(io.BytesIO(get(f"{address}data/dataset.parquet")[1])).to_pylist()


def refused(capsys, *argv: str) -> str:
    """What a mistake is told."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: explore.main(explore.parse_args(argv)))
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.process
class TestServed:
    def test_the_page_is_the_viewers_with_ours_in_it(self, address):
        status, page, _ = get(address)
        assert status == 200 and b'src="explore/explore.js"' in page and b'"search": true' in page
        assert get(f"{address}explore/explore.js")[1] == (PAGE / "explore.js").read_bytes()

    def test_the_table_names_a_sound_and_a_picture_for_each_clip(self, address, embeddings):
        rows = table_of(address)
        assert [row["row"] for row in rows] == list(range(20)) and {row["label"] for row in rows} == {"noise", "tone"}
        assert rows[3]["sound"] == f"{address}sound/3.wav" and "locator" not in rows[3]
        metadata = json.loads(get(f"{address}data/metadata.json")[1])
        assert metadata["props"]["defaultChartsConfig"]["embedding"]["data"]["category"] == "label"
        assert set(metadata["props"]["initialState"]["columnStyles"]) == set(rows[0])

    def test_a_sound_is_that_of_its_clip(self, address):
        row = next(row for row in table_of(address) if row["clip_id"] == "tone/tone 3.wav")
        status, content, _ = get(row["sound"])
        wave, rate = soundfile.read(io.BytesIO(content))
        assert status == 200 and rate == 32_000
        peak = np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)
        assert peak == pytest.approx(420, abs=1) and len(wave) / rate == pytest.approx(1.3)

    def test_a_part_of_a_sound_is_what_was_asked_for(self, address):
        whole = get(f"{address}sound/0.wav")[1]
        status, part, headers = get(f"{address}sound/0.wav", Range="bytes=100-199")
        assert (status, part) == (206, whole[100:200]) and headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
        assert get(f"{address}sound/0.wav", Range="bytes=100-")[1] == whole[100:]
        assert get(f"{address}sound/0.wav", Range=f"bytes={len(whole)}-")[0] == 416

    def test_a_picture_shows_low_frequencies_below(self, address):
        row = next(row for row in table_of(address) if row["clip_id"] == "tone/tone 0.wav")  # 300 Hz
        image = np.asarray(Image.open(io.BytesIO(get(row["log_mel"])[1])).convert("L")).mean(axis=1)
        assert len(image) == 128 and image.argmax() > 110

    def test_a_clip_that_is_not_there_is_not_found(self, address):
        assert get(f"{address}sound/20.wav")[0] == 404

    def test_a_recording_finds_itself(self, address, embeddings):
        row = next(row for row in table_of(address) if row["clip_id"] == "tone/tone 3.wav")
        with urllib.request.urlopen(f"{address}search", Path(row["uri"]).read_bytes(), timeout=PATIENCE) as answer:
            found = json.loads(answer.read())
        assert (found[0]["row"], found[0]["label"]) == (row["row"], "tone")
        assert found[0]["similarity"] == pytest.approx(1) and len(found) == 12

    def test_what_is_no_recording_gets_the_reason(self, address):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{address}search", b"no sound at all", timeout=PATIENCE)
        assert refusal.value.code == 400 and b"decode" in refusal.value.read()

    def test_a_page_of_another_name_is_not_answered(self, address):
        assert get(f"{address}data/metadata.json", Host="evil.example")[0] == 400


@pytest.fixture
def noises(sounds, tmp_path):
    """10 clips embedded, and their files, which a test may delete."""
    copied = shutil.copytree(sounds / "noise", tmp_path / "noise")
    made = embed(load_manifest("folder", str(copied)), tmp_path / "emb")
    return made.path, sorted(copied.iterdir())


@pytest.mark.process
def test_a_sound_that_is_gone_says_so_and_the_others_play(noises):
    folder, files = noises
    files[2].unlink()
    with explored(folder) as (address, _):
        status, reason, _ = get(f"{address}sound/2.wav")
        assert status == 404 and b"noise 2.wav: read: " in reason
        assert get(f"{address}sound/3.wav")[0] == 200


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_to_as_if_all_was_done(copy, sent, capfd):
    with explored(copy) as (address, process):
        assert get(address)[0] == 200
        process.send_signal(sent)
        assert process.wait(PATIENCE) == 0
        assert "interrupted" not in capfd.readouterr().err


def test_the_documents_install_the_viewer_that_is_tested():
    for name in ("Makefile", "pipelines/README.md"):
        assert f"embedding-atlas=={VERSION}" in (ROOT / name).read_text()


def test_an_exported_site_has_previews(copy, tmp_path, capsys):
    explore.main(explore.parse_args([copy, "--export", str(tmp_path / "site"), "--previews", "0.5"]))
    rows = pq.read_table(tmp_path / "site/data/dataset.parquet").to_pylist()
    for row in rows:
        wave, rate = soundfile.read(io.BytesIO(row["sound"]["bytes"]))
        assert row["sound"]["path"].endswith(".mp3") and 0.5 <= len(wave) / rate < 0.7
        assert Image.open(io.BytesIO(row["log_mel"]["bytes"])).height == 64
    assert "uri" not in rows[0], "a path of this machine in what may be published"
    page = (tmp_path / "site/index.html").read_text()
    assert '"search": false' in page and (tmp_path / "site/explore/explore.js").is_file()
    assert json.loads((tmp_path / "site/data/metadata.json").read_text())["isStatic"]
    assert "20 clips" in capsys.readouterr().out


def test_without_previews_the_site_has_no_sound(copy, tmp_path):
    explore.main(explore.parse_args([copy, "--export", str(tmp_path / "site"), "--previews", "0"]))
    assert "sound" not in pq.read_schema(tmp_path / "site/data/dataset.parquet").names
    styles = json.loads((tmp_path / "site/data/metadata.json").read_text())["props"]["initialState"]["columnStyles"]
    assert "sound" not in styles


def test_previews_of_sounds_in_parquet_rows_are_theirs(sounds, tmp_path):
    files = sorted(sounds.rglob("*.wav"))[:4]
    content = [{"bytes": f.read_bytes(), "path": f.name} for f in files]
    pq.write_table(pa.table({"audio": content}), tmp_path / "held.parquet")
    held = embed(load_manifest("parquet", str(tmp_path / "held.parquet")), tmp_path / "emb")
    explore.main(explore.parse_args([held.path, "--export", str(tmp_path / "site")]))
    rows = pq.read_table(tmp_path / "site/data/dataset.parquet").to_pylist()
    seconds = sorted(soundfile.info(io.BytesIO(row["sound"]["bytes"])).duration for row in rows)
    np.testing.assert_allclose(seconds, sorted(soundfile.info(f).duration for f in files), atol=0.1)


def test_previews_of_files_that_are_gone_are_counted(noises, tmp_path, capsys):
    folder, files = noises
    for file in files[1:3]:
        file.unlink()
    explore.main(explore.parse_args([folder, "--export", str(tmp_path / "site")]))
    rows = pq.read_table(tmp_path / "site/data/dataset.parquet").to_pylist()
    assert [row["sound"] is None for row in rows[:4]] == [False, True, True, False]
    assert "2 of 10 clips have no preview (" in capsys.readouterr().out


def test_previews_of_nothing_are_refused(noises, tmp_path, capsys):
    folder, files = noises
    for file in files:
        file.unlink()
    said = refused(capsys, folder, "--export", str(tmp_path / "site"))
    assert "not one of 10 sounds could be read" in said and "--previews 0" in said
    assert not (tmp_path / "site/explore.json").exists()


def test_a_site_is_not_written_over(copy, tmp_path, capsys):
    site = ["--export", str(tmp_path / "site"), "--previews", "0"]
    explore.main(explore.parse_args([copy, *site]))
    assert "holds a site already: --overwrite" in refused(capsys, copy, *site)
    explore.main(explore.parse_args([copy, *site, "--overwrite"]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "is no exported map" in refused(capsys, copy, "--export", str(tmp_path / "mine"), "--overwrite")


MISTAKES = {
    "nothing there": (["{gone}"], "does not exist"),
    "unfinished": (["{unfinished}"], "not finished"),
    "frames": (["{frames}"], "embed the clips with --level clip"),
    "encoder missing": (["{emb}", "--encoder", "{gone}"], "cannot load the encoder"),
    "query missing": (["{emb}", "--query", "{gone}"], "--query"),
    "port of no kind": (["{emb}", "--port", "70000"], "from 0 to 65535"),
    "host that is not ours": (["{emb}", "--host", "192.0.2.1"], "cannot serve at 192.0.2.1"),
    "no neighbours": (["{emb}", "--neighbours", "0"], "--neighbours must be positive"),
    "previews of less than nothing": (["{emb}", "--previews", "-1"], "--previews must be 0 or more"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name, embeddings, copy, tmp_path, capsys):
    for kind in ("unfinished", "frames"):
        shutil.copytree(copy, tmp_path / kind)
    (tmp_path / "unfinished" / EMBEDDINGS_JSON).unlink()
    info = json.loads(Path(copy, EMBEDDINGS_JSON).read_text())
    storage.write_text(str(tmp_path / "frames" / EMBEDDINGS_JSON), json.dumps(info | {"level": "frame"}))
    argv, message = MISTAKES[name]
    said = refused(capsys, *(str(tmp_path / a[1:-1]) if a.startswith("{") else a for a in argv), "--no-browser")
    assert message in said and "Traceback" not in said


def test_a_viewer_that_is_not_installed_is_named(copy, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps embedding-atlas==" in refused(capsys, copy)
