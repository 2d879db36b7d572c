"""Paths and URIs: resolve, list, and files that appear whole or not at all."""

import pytest

from ajepa import retries, storage
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


@pytest.mark.parametrize("path", ["s3://bucket/a/../b", "gs://bucket/two words"])
def test_uris_stay_as_they_are(path):
    assert storage.absolute(path) == path


def test_a_file_uri_is_a_local_path():
    assert storage.absolute("file:///two%20words/a") == "/two words/a"


def test_options_in_a_uri_are_refused():
    with pytest.raises(UserError, match="set AWS_ENDPOINT_URL"):
        storage.resolve("s3://bucket/a?endpoint_override=127.0.0.1:9000")


def test_a_store_has_one_client_and_keys_have_no_escapes(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # else the region is asked of AWS
    one, key = storage.resolve("s3://bucket/50% of a?.wav")
    assert key == "bucket/50% of a?.wav"
    assert storage.resolve("s3://bucket/other")[0] is one


def fail(times, error, path, monkeypatch):
    """How often work that fails `times` was done, and its result."""
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0))
    done = []

    def work():
        done.append(1)
        if len(done) <= times:
            raise error
        return "there"

    try:
        return len(done), storage.with_retries(path, work), len(done)
    except OSError as raised:
        return 0, raised, len(done)


@pytest.mark.parametrize(
    "message", ["AWS Error NETWORK_CONNECTION: curlCode: 7", "HTTP status 503", "HTTP status 429", "SLOW_DOWN", "?"]
)
def test_a_store_that_does_not_answer_is_asked_again(monkeypatch, message):
    assert fail(2, OSError(message), "s3://b/a", monkeypatch)[1:] == ("there", 3)
    _, raised, tries = fail(9, OSError(message), "s3://b/a", monkeypatch)
    assert isinstance(raised, storage.UnreachableError) and "s3://b/a" in str(raised) and tries == 3


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        OSError("AWS Error ACCESS_DENIED"),
        OSError("HTTP status 404"),
        OSError("google::cloud::Status(PERMISSION_DENIED: no such right)"),
    ],
)
def test_an_answer_about_the_object_is_final(monkeypatch, error):
    assert fail(1, error, "s3://b/a", monkeypatch) == (0, error, 1)


def test_local_errors_are_final(monkeypatch):
    error = OSError("Input/output error")
    assert fail(1, error, "/a", monkeypatch) == (0, error, 1) == fail(1, error, "file:///a", monkeypatch)


def test_a_file_uri_may_hold_escapes(tmp_path):
    (tmp_path / "two words.txt").write_text("héllo")
    assert storage.read_text((tmp_path / "two words.txt").as_uri()) == "héllo"


def test_kinds_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    paths = (tmp_path, tmp_path / "a.txt", tmp_path / "none")
    assert [storage.path_type(str(path)) for path in paths] == ["folder", "file", "missing"]


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
