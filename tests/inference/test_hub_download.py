"""Encoders on the Hugging Face Hub, a loopback server that answers as it does."""

import shutil
import sys

import pytest
import torch
from helpers.loopback_hub import COMMIT, loopback_hub

import ajepa
from ajepa.errors import UserError
from ajepa.inference.hub_download import HubPath, parse
from ajepa.inference.shipped import FILES, FOLDER

WAVE = torch.sin(torch.arange(16_000) / 20).numpy()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with `lab/nano`, an export at its top and one in the folder small/one; the cache is empty."""
    constants = pytest.importorskip("huggingface_hub.constants")
    shutil.copytree(FOLDER / "nano", tmp_path / "hub/lab/nano")
    shutil.copytree(FOLDER / "nano", tmp_path / "hub/lab/nano/small/one")
    (tmp_path / "hub/lab/other").mkdir()
    with loopback_hub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other tests of this process may have set it
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.mark.parametrize(
    "uri",
    [
        "hf://lab/nano",
        "hf://lab/nano@v1",
        "hf://lab/nano@refs%2Fpr%2F1/small/one",
        "hf://lab/nano/small//one/",
        f"hf://lab/nano@{COMMIT}/",
    ],
)
def test_an_export_on_the_hub_is_an_encoder(uri, hub, tmp_path):
    found = ajepa.load_encoder(uri)
    torch.testing.assert_close(found(WAVE, 16_000), ajepa.load_encoder("nano")(WAVE, 16_000), rtol=0, atol=0)
    assert found.about["source"].startswith(str(tmp_path / "cache"))
    files = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert files == set(FILES), "more than an encoder was asked for"


def test_all_files_are_of_one_commit(hub):
    ajepa.load_encoder("hf://lab/nano@v1")
    first, weights = [[line for line in hub.asked if line.endswith(file)] for file in FILES]
    assert "/v1/" in first[0] and all(f"/{COMMIT}/" in line for line in weights)


@pytest.fixture
def offline(monkeypatch):
    """What HF_HUB_OFFLINE=1 sets; call it. (Without it a Hub that is away is asked again for half a minute.)"""
    constants = pytest.importorskip("huggingface_hub.constants")
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_second_time_nothing_is_loaded_again_even_without_the_hub(hub, offline):
    ajepa.load_encoder("hf://lab/nano")
    hub.asked.clear()
    ajepa.load_encoder("hf://lab/nano")
    assert not [line for line in hub.asked if line.startswith("GET")]
    offline()
    hub.asked.clear()
    assert ajepa.load_encoder("hf://lab/nano").width == 192 and not hub.asked


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://lab", "the form is hf://OWNER/REPOSITORY"),
        ("hf://lab/nano@", "the form is hf://"),
        ("hf://lab/nano/../../x", "the form is hf://"),
        ("hf://lab/na no", "lab/na no"),
        ("hf://lab/gone", "no such repository, or a private one"),
        ("hf://lab/nano@v9", "no revision 'v9'"),
        ("hf://lab/other", "the repository has no encoder.json"),
        ("hf://lab/nano/large", "the folder 'large' has no encoder.json"),
    ],
)
def test_a_mistake_is_one_line(uri, message, hub):
    with pytest.raises(UserError) as error:
        ajepa.load_encoder(uri)
    assert message in str(error.value) and uri in str(error.value) and "\n" not in str(error.value)


def test_a_gated_repository_says_how_to_get_in(hub):
    hub.gated.add("lab/nano")
    with pytest.raises(UserError, match="ask its owner for access"):
        ajepa.load_encoder("hf://lab/nano")


def test_without_the_hub_and_the_cache(hub, offline):
    offline()
    with pytest.raises(UserError, match=r"the Hub cannot be reached, and the cache here does not hold encoder\.json"):
        ajepa.load_encoder("hf://lab/nano")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'ajepa\[hub\]'"):
        ajepa.load_encoder("hf://lab/nano")


def test_parts_of_an_address():
    assert parse("hf://lab/nano") == HubPath("lab/nano", None, "")
    assert parse("hf://lab/nano@refs%2Fpr%2F1/a/b/") == HubPath("lab/nano", "refs/pr/1", "a/b")
