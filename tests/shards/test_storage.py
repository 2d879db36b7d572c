"""Paths and URIs: resolve, list, and files that appear whole or not at all."""

import pytest

from ajepa import storage
from ajepa.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["gopher://host/a", "http://host/a.wav", "://a"])
def test_an_unknown_scheme_is_a_users_mistake(path):
    with pytest.raises(UserError, match="is not supported here"):
        storage.resolve(path)


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == str(tmp_path / "b")


@pytest.mark.parametrize("path", ["s3://bucket/a/../b", "file:///a"])
def test_uris_stay_as_they_are(path):
    assert storage.absolute(path) == path


def test_a_file_uri_may_hold_escapes(tmp_path):
    (tmp_path / "two words.txt").write_text("héllo")
    assert storage.read_text((tmp_path / "two words.txt").as_uri()) == "héllo"


def test_kinds_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    paths = (tmp_path, tmp_path / "a.txt", tmp_path / "none")
    assert [storage.kind(str(path)) for path in paths] == ["folder", "file", "missing"]


def test_join_puts_one_slash_between():
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"


def test_files_are_listed_sorted_with_their_sizes(tmp_path):
    for name, size in (("b.txt", 3), ("a/z.txt", 1), ("a.txt", 0), ("a/b/c.txt", 2)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert storage.list_files(str(tmp_path)) == [("a.txt", 0), ("a/b/c.txt", 2), ("a/z.txt", 1), ("b.txt", 3)]


def test_a_uri_lists_the_same_files(tmp_path):
    storage.write_text(str(tmp_path / "a.txt"), "a")
    assert storage.list_files(tmp_path.as_uri()) == storage.list_files(str(tmp_path)) == [("a.txt", 1)]


def test_dangling_links_are_not_listed(tmp_path):
    (tmp_path / "link.wav").symlink_to("gone.wav")
    assert storage.list_files(str(tmp_path)) == []


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop").symlink_to("..")
    (tmp_path / "a/x.txt").write_text("x")
    assert storage.list_files(str(tmp_path)) == [("a/x.txt", 1)]


def test_output_appears_when_the_block_ends(tmp_path):
    with storage.atomic_output(str(tmp_path / "a.txt")) as stream:
        stream.write(b"text")
        assert not (tmp_path / "a.txt").exists()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), storage.atomic_output(str(tmp_path / "a.txt")) as stream:
        stream.write(b"half of it")
        raise error
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old_file(tmp_path):
    storage.write_text(str(tmp_path / "a.txt"), "old")
    with pytest.raises(RuntimeError), storage.atomic_output(str(tmp_path / "a.txt")) as stream:
        stream.write(b"new")
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"]
    assert storage.read_text(str(tmp_path / "a.txt")) == "old"


def test_text_is_replaced(tmp_path):
    path = (tmp_path / "a.txt").as_uri()
    storage.write_text(path, "a longer first text")
    storage.write_text(path, "short ü")
    assert storage.read_text(path) == "short ü"


def test_a_file_is_deleted(tmp_path):
    storage.write_text(str(tmp_path / "a.txt"), "a")
    storage.delete(str(tmp_path / "a.txt"))
    assert names(tmp_path) == []


def test_a_folder_is_deleted_with_its_files(tmp_path):
    storage.make_folder(str(tmp_path / "a/b"))
    storage.write_text(str(tmp_path / "a/b/c.txt"), "c")
    storage.delete(str(tmp_path / "a"))
    assert names(tmp_path) == []


def test_deleting_what_is_not_there_does_nothing(tmp_path):
    storage.delete(str(tmp_path / "none"))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.open_input(str(tmp_path / "none"))
