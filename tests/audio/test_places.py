"""Paths of lists as people write them, and the first look at whether anything is there."""

import pytest

from ajepa import storage
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError


def write(folder, *paths):
    (folder / "list.csv").write_text("uri\n" + "".join(f"{path}\n" for path in paths))
    return str(folder / "list.csv")


def uris(folder, *paths):
    return load_manifest("manifest", write(folder, *paths)).clips["uri"].to_pylist()


def refused(folder, *paths):
    with pytest.raises(UserError) as error:
        uris(folder, *paths)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A folder for a list, with sounds in it, beside it, at home and in the current directory."""
    for name in ("lists/a.wav", "lists/sub/ü b#c.wav", "sounds/b.wav", "home/c.wav", "here/only/d.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "lists"


def test_every_way_to_write_a_path_leads_to_its_file(lists, tmp_path):
    file = lists / "sub/ü b#c.wav"
    written = ["a.wav", "./a.wav", "../sounds/b.wav", "~/c.wav", file.as_uri(), str(tmp_path / "sounds/b.wav"),
               f"file://{lists}/a.wav"]  # fmt: skip
    assert "%C3%BC%20b%23c" in file.as_uri()
    manifest = load_manifest("manifest", write(lists, *written))
    found = dict(zip(manifest.clips["clip_id"].to_pylist(), manifest.clips["uri"].to_pylist(), strict=True))
    assert found == {
        "a.wav": str(lists / "a.wav"), "./a.wav": str(lists / "a.wav"), file.as_uri(): str(file),
        f"file://{lists}/a.wav": str(lists / "a.wav"), "../sounds/b.wav": str(tmp_path / "sounds/b.wav"),
        "~/c.wav": str(tmp_path / "home/c.wav"),
        str(tmp_path / "sounds/b.wav"): str(tmp_path / "sounds/b.wav"),
    }  # fmt: skip
    assert manifest.remarks == ()


def test_paths_may_start_in_the_current_directory(lists, tmp_path):
    manifest = load_manifest("manifest", write(lists, "only/d.wav", "only/gone.wav"))
    here = tmp_path / "here"
    assert manifest.clips["uri"].to_pylist() == [str(here / "only/d.wav"), str(here / "only/gone.wav")]
    assert manifest.remarks == (
        f"paths of the manifest start in the current directory {str(here)!r}, not beside the manifest",
        f"files that do not exist, whose clips become bad rows: 1 of 2 looked at ({str(here / 'only/gone.wav')!r})",
    )


def test_the_folder_of_the_list_comes_first(lists, tmp_path):
    (tmp_path / "here/a.wav").touch()
    assert uris(lists, "a.wav", "only/d.wav") == [str(lists / "a.wav"), str(lists / "only/d.wav")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/no/such/place/x.wav", "there is no '/no' here; is the list of another machine?"),
        ("/data/set/a.wav", "the list is of another machine, but 'a.wav' lies beside it; write the paths so"),
        ("a", "with '.wav' at its end it does; write the whole names"),
        (r"sub\x.wav", r"it was written on Windows; write / for \ "[:-1]),
        ("b.wav", "it lies in '{tmp}/sounds'; put the list, or a link to it, there"),
        ("x.wav", "paths start in the list's folder '{lists}', or else in the current directory"),
        ("{tmp}/sounds/x.wav", "there is no '{tmp}/sounds/x.wav' here; is the list of another machine?"),
    ],
)
def test_a_list_of_which_no_file_exists_is_refused(lists, tmp_path, path, said):
    path, said = (text.replace("{lists}", str(lists)).replace("{tmp}", str(tmp_path)) for text in (path, said))
    found = path if path.startswith("/") else str(lists / path)
    assert refused(lists, path) == f"the file does not exist, {found!r} for one: {said}"
    assert refused(lists, path, path + "x").startswith("none of the 2 files looked at exists, ")


def test_a_hundred_rows_of_a_long_list_are_looked_at(lists):
    names = ["a.wav" if i < 500 else f"{i}.wav" for i in range(1_000)]
    clips = [f"{name},{i}" for i, name in enumerate(names)]
    (lists / "list.csv").write_text("uri,clip_id\n" + "\n".join(clips))
    manifest = load_manifest("manifest", str(lists / "list.csv"))
    assert manifest.remarks[0].startswith("files that do not exist, whose clips become bad rows: 50 of 100 ")


def test_a_path_that_no_system_takes_does_not_exist(lists):
    assert "does not exist" in refused(lists, "x" * 5_000)


def test_addresses_that_nothing_here_reads_are_refused(lists):
    assert "the scheme https:// is not supported here" in refused(lists, "https://host/a.wav")


def test_a_list_in_a_store_has_its_files_beside_it(s3, lists):
    for name in ("lists/a.wav", "sounds/b.wav"):
        storage.write_text(f"s3://sounds/{name}", "x")
    storage.write_text("s3://sounds/lists/list.csv", "uri\na.wav\n../sounds/b.wav\ns3://sounds/gone.wav\n")
    manifest = load_manifest("manifest", "s3://sounds/lists/list.csv")
    assert manifest.clips["uri"].to_pylist() == [
        "s3://sounds/sounds/b.wav", "s3://sounds/lists/a.wav", "s3://sounds/gone.wav",
    ]  # fmt: skip
    assert manifest.remarks == (
        "files that do not exist, whose clips become bad rows: 1 of 3 looked at ('s3://sounds/gone.wav')",
    )
    storage.write_text("s3://sounds/lists/list.csv", "uri\nx.wav\n")
    with pytest.raises(UserError, match=r"the file does not exist, 's3://sounds/lists/x.wav' for one: correct"):
        load_manifest("manifest", "s3://sounds/lists/list.csv")
