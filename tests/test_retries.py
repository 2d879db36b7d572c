"""A store that goes away while a command runs is waited for; one that never answered is not."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers.faults import assert_same_end, options
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.errors import UserError
from ajepa.training.run_folder import read_lines
from pipelines import pretrain

GONE = OSError("AWS Error NETWORK_CONNECTION: curlCode: 7")


@pytest.fixture
def clock(monkeypatch):
    """Seconds pass only in pauses; the answered stores are none."""
    now = [0.0]
    monkeypatch.setattr(retries, "monotonic", lambda: now[0])
    monkeypatch.setattr(retries, "pause", lambda seconds, _: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(retries, "_answered", set())
    monkeypatch.setattr(retries, "_away", set())
    monkeypatch.setenv(retries.PATIENCE, "100")
    return now


def failing(times):
    """Work that fails so often."""
    left = [GONE] * times

    def work():
        if left:
            raise left.pop()
        return "there"

    return work


def ask(work, path="s3://bucket/key"):
    return storage.with_retries(path, work)


def test_a_store_that_never_answered_is_given_up_at_once(clock, capsys):
    with pytest.raises(retries.UnreachableError, match="cannot reach 's3://bucket/key': AWS Error NETWORK"):
        ask(failing(99))
    assert clock[0] == sum(retries.WAITS) and capsys.readouterr().err == ""


def test_a_store_that_answers_late_if_at_all_is_said_after_the_first_try(clock, capsys):
    """As one whose packets are lost: the client's own tries take a minute."""
    ask(failing(0))

    work = failing(2)

    def slow():
        clock[0] += 60
        return work()

    assert ask(slow) == "there"
    away, back = capsys.readouterr().err.splitlines()
    assert "s3://bucket does not answer: asking again for 40 s" in away and "answers again after" in back


@pytest.mark.parametrize("answer", [lambda: "there", FileNotFoundError("no such key"), OSError("HTTP status 403")])
def test_a_store_that_has_answered_is_waited_for(clock, capsys, answer):
    try:
        ask(answer if callable(answer) else lambda: (_ for _ in ()).throw(answer))
    except OSError as error:
        assert error is answer
    assert ask(failing(7)) == "there"
    assert clock[0] == sum(retries.WAITS) + 5 * retries.LONG_WAIT
    assert capsys.readouterr().err.splitlines() == [
        "warning: s3://bucket does not answer: asking again for 94 s (AWS Error NETWORK_CONNECTION: curlCode: 7)",
        "s3://bucket answers again after 81 s",
    ]


def test_several_threads_say_it_once(capsys, monkeypatch):
    monkeypatch.setattr(retries, "_answered", {"s3://bucket"})
    monkeypatch.setattr(retries, "WAITS", ())
    monkeypatch.setenv(retries.PATIENCE, "600")
    meeting, said = threading.Barrier(3), []
    monkeypatch.setattr(retries, "pause", lambda *_: meeting.wait(60))
    threads = [threading.Thread(target=lambda: said.append(ask(failing(1)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["there"] * 3
    first, second = capsys.readouterr().err.splitlines()
    assert "does not answer" in first and "answers again" in second


def test_a_short_break_is_not_worth_a_word(clock, capsys):
    ask(failing(0))
    assert ask(failing(2)) == "there" and capsys.readouterr().err == ""


def test_patience_ends(clock):
    ask(failing(0))
    with pytest.raises(retries.UnreachableError):
        ask(failing(99))
    assert 100 <= clock[0] < 100 + retries.LONG_WAIT


def test_another_bucket_is_another_store(clock):
    ask(failing(0))
    with pytest.raises(retries.UnreachableError):
        ask(failing(3), "s3://other/key")


def test_work_inside_other_work_waits_once(clock):
    ask(failing(0))
    with pytest.raises(retries.UnreachableError):
        ask(lambda: ask(failing(99)))
    assert clock[0] < 100 + retries.LONG_WAIT


def test_what_is_done_again_anyway_does_not_wait(clock):
    ask(failing(0))
    with retries.impatient(), pytest.raises(retries.UnreachableError):
        ask(failing(99))
    assert clock[0] == sum(retries.WAITS)
    assert ask(failing(7)) == "there"


def test_a_patience_that_is_no_number_is_said(clock, monkeypatch):
    ask(failing(0))
    monkeypatch.setenv(retries.PATIENCE, "10m")
    with pytest.raises(UserError, match="AJEPA_STORE_PATIENCE='10m' is no number of seconds"):
        ask(failing(1))


def test_a_local_file_is_asked_for_once(clock):
    with pytest.raises(OSError, match="NETWORK"):
        ask(failing(1), "/local/file")
    assert clock[0] == 0


def test_whoever_stops_does_not_wait():
    stopped = threading.Event()
    threading.Timer(0.2, stopped.set).start()
    begin = time.monotonic()
    with pytest.raises(retries.UnreachableError):
        storage.with_retries("s3://never/key", failing(99), stopped)
    assert time.monotonic() - begin < sum(retries.WAITS)


def test_a_bucket_that_does_not_exist_is_not_waited_for(s3):
    with pytest.raises(OSError, match="NO_SUCH_BUCKET") as raised:
        storage.write_text("s3://nowhere/key", "text")
    assert not isinstance(raised.value, retries.UnreachableError)


def test_a_google_store_without_an_answer_is_given_up(monkeypatch):
    """Its client would ask for a quarter of an hour, three times."""
    monkeypatch.setattr(retries, "WAITS", ())
    monkeypatch.setattr(storage, "GS_SECONDS", 1)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach 'gs://bucket/key': .*Retry policy exhausted"):
        storage.path_type("gs://bucket/key")


@pytest.mark.process
def test_ctrl_c_ends_a_wait_for_a_server_that_accepts_and_never_answers():
    """Python looks at signals between the calls of the client: one of them asks only a few times."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        given = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        program = "from ajepa import storage; storage.path_type('s3://bucket/key')"
        with subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | given, stderr=subprocess.PIPE, text=True
        ) as process:
            first, _ = server.accept()
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate()
        server.setblocking(False)
        asked = [first]
        with contextlib.suppress(BlockingIOError):
            while True:
                asked.append(server.accept()[0])
    for connection in asked:
        connection.close()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in printed
    assert len(asked) == storage.S3_TRIES


@pytest.mark.parametrize("at", [b"step-00000005", b"history", b"run.json"])
def test_a_training_outlives_a_store_that_goes_away(
    at, small_dataset, s3, wire, tmp_path, mlflow_uri, monkeypatch, capsys
):
    """While it writes a checkpoint, a report or the end of its run."""
    monkeypatch.setenv(retries.PATIENCE, "600")
    ask_once(monkeypatch, wire)
    tries: list[float] = []

    def pause(seconds, _):
        tries.append(seconds)
        if len(tries) > len(retries.WAITS) + 2:
            wire.mend()

    monkeypatch.setattr(retries, "pause", pause)
    outputs = f"s3://sounds/{tmp_path.name}", str(tmp_path / "undisturbed")
    wire.cut_at = at
    for output in outputs:
        pretrain.main(pretrain.parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "0")))
    assert len(tries) > len(retries.WAITS) + 2
    said = capsys.readouterr().err
    assert "warning: s3://sounds does not answer" in said and "s3://sounds answers again after" in said
    assert_same_end(*outputs)
    steps = [[report["step"] for report in read_lines(f"{output}/history.jsonl")] for output in outputs]
    assert steps[0] == steps[1]
