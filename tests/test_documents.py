"""Documents that earlier commands left: what is damaged is refused by name, with what to do."""

import pytest

from ajepa.checkpoints import BEST, read_best
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.finetuning.run import TEST_LOGITS, read_result, read_test_logits
from ajepa.training.run_folder import read_history


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"1", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json' is damaged \(.+\): restore it"):
        read_document(str(tmp_path / "a.json"), "restore it")


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_document(str(tmp_path / "a.json"), "restore it")


def test_a_missing_key_and_another_type_are_damage():
    for content, reason in (({}, "no 'step'"), ({"step": "1"}, "step is str")):
        with pytest.raises(UserError, match=rf"'a' is damaged \({reason}\): go"), refusing_damage("a", "go"):
            require_types(content, step=int)


def test_a_users_mistake_stays_as_it_is():
    with pytest.raises(UserError, match=r"^another version$"), refusing_damage("a", "go"):
        raise UserError("another version")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"step": null, "score": 1.0}'])
def test_a_damaged_best_json_is_refused(tmp_path, content):
    (tmp_path / BEST).write_text(content)
    with pytest.raises(UserError, match=r"best\.json' is damaged .*delete it"):
        read_best(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 1}'])
def test_a_damaged_result_of_a_fine_tuned_model_is_refused(tmp_path, content):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0/result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json' is damaged .*delete the folder '.*seed-0'"):
        read_result(str(tmp_path), "seed-0")


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_damaged_logits_are_refused(tmp_path, content):
    (tmp_path / "seed-0").mkdir()
    if content is not None:
        (tmp_path / "seed-0" / TEST_LOGITS).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*delete the folder"):
        read_test_logits(str(tmp_path), "seed-0")


def test_lines_of_a_history_that_are_no_reports_are_passed_over(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 1}\n3\n[]\n{}\n\xff\xfe\n{"st\n{"step": 2}\n')
    assert [report["step"] for report in read_history(str(tmp_path))] == [1, 2]
