"""One command at a time writes to an output: on a disk, in a store, whoever comes second and whatever became of the
first."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.faults import wait_for

from ajepa import storage
from ajepa.errors import UserError
from pipelines.cli import lock
from pipelines.cli.command import run_command
from pipelines.cli.lock import Lock, claimed, lock_path, read_locks

HOLDER = """
import sys, time
from pipelines.cli.command import run_command
from pipelines.cli.lock import claimed
def hold():
    with claimed(sys.argv[1]):
        print("held", flush=True)
        time.sleep(600)
run_command(hold)
"""


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "runs/a")
    request.getfixturevalue("s3")
    return f"s3://sounds/{tmp_path.name}/a"


@pytest.fixture
def start():
    """start(output) is another process that holds the output."""
    with contextlib.ExitStack() as stack:

        def begin(output):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout.readline() == "held\n"
            return process

        yield begin


def of_another_machine(output, state=lock.HELD, token="ffff"):
    """A lock whose process cannot be asked for."""
    other = Lock(
        token=token, state=state, command="pretrain.py", host="node7", machine="another", pid=17, started=0.0,
        since="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    if storage.is_local(output):
        storage.make_folder(output)
    storage.write_text(lock_path(output, token), json.dumps(dataclasses.asdict(other)))
    return lock_path(output, token)


def test_an_output_is_held_until_the_block_ends(output):
    with claimed(output):
        (seen,) = read_locks(output)
        assert (seen.lock.state, seen.lock.pid) == (lock.HELD, os.getpid())
        assert storage.contents(output) == set()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), claimed(output):
            pass
        assert len(read_locks(output)) == 1
    assert read_locks(output) == []


def test_a_lock_that_could_not_be_deleted_is_no_hindrance(tmp_path, monkeypatch):
    """The store was away when this process had done its work."""
    with monkeypatch.context() as patch, claimed(str(tmp_path / "a")):
        patch.setattr(storage, "delete", lambda _: None)
    with claimed(str(tmp_path / "a")):
        assert len(read_locks(str(tmp_path / "a"))) == 1


def test_nothing_stays_of_a_command_that_is_refused(tmp_path):
    with pytest.raises(UserError, match="another mistake"), claimed(str(tmp_path / "a/b")):
        raise UserError("another mistake")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_the_second_of_two_processes_is_refused_with_one_line(output, start, capsys):
    holder = start(output)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: contextlib.ExitStack().enter_context(claimed(output)))
    (line,) = capsys.readouterr().err.splitlines()
    when = r"since 2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00, last heartbeat \d+ s ago"
    assert stop.value.code == 2 and re.match(
        rf"error: --output .* is in use by process {holder.pid} on .* {when}", line
    )
    assert len(read_locks(output)) == 1


@pytest.mark.process
def test_a_killed_process_loses_its_output_at_once(output, start, monkeypatch, capsys):
    holder = start(output)
    holder.kill()
    holder.wait(60)
    looks = []
    monkeypatch.setattr(time, "sleep", looks.append)  # between two looks at its lock
    with claimed(output):
        assert [seen.lock.pid for seen in read_locks(output)] == [os.getpid()]
    assert looks == []
    assert f"process {holder.pid} on" in (said := capsys.readouterr().err) and "taking over" in said


@pytest.mark.process
def test_sigterm_gives_the_output_back(output, start):
    holder = start(output)
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(60) == 143
    assert read_locks(output) == []


def test_another_machine_without_a_sign_of_life_loses_it_after_a_while(output, monkeypatch, capsys):
    of_another_machine(output)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 2.5)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.1)
    with claimed(output):
        assert [seen.lock.pid for seen in read_locks(output)] == [os.getpid()]
    said = capsys.readouterr().err
    assert "in use by process 17 on node7 (pretrain.py) since 2026-01-02T03:04:05+00:00" in said
    assert "waiting for a heartbeat" in said and "taking over" in said


def test_another_machine_that_gives_a_sign_of_life_keeps_it(output, monkeypatch):
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.1)
    of_another_machine(output)
    threading.Timer(1.5, of_another_machine, [output]).start()
    with pytest.raises(UserError, match="process 17 on node7"), claimed(output):
        pass
    assert [seen.lock.host for seen in read_locks(output)] == ["node7"]


def test_a_clock_that_is_wrong_does_not_matter(tmp_path, monkeypatch):
    """The age of a lock is the difference of two times of one store."""
    output = str(tmp_path / "a")
    path = of_another_machine(output)
    monkeypatch.setattr(time, "time", lambda: 1e10)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.1)
    threading.Timer(0.5, os.utime, [path]).start()
    with pytest.raises(UserError, match=r"last heartbeat 0 s ago"), claimed(output):
        pass


@pytest.mark.parametrize(("token", "wins"), [("0", False), ("ffffffffffffffff", True)])
def test_of_two_that_come_together_one_gets_it(tmp_path, monkeypatch, token, wins):
    output = str(tmp_path / "a")
    path = of_another_machine(output, lock.WAITING, token)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.05)
    threading.Timer(0.3, os.utime, [path]).start()
    threading.Timer(0.6, os.unlink, [path]).start()  # the other sees a lower token, and goes
    if wins:
        with claimed(output):
            assert [seen.lock.pid for seen in read_locks(output)] == [os.getpid()]
    else:
        with pytest.raises(UserError, match="node7"), claimed(output):
            pass


def test_many_at_once_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
    output, inside, most, refused = str(tmp_path / "a"), [0], [0], []
    guard, gate = threading.Lock(), threading.Barrier(8)

    def work():
        gate.wait()
        try:
            with claimed(output):
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.2)
                with guard:
                    inside[0] -= 1
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert most == [1] and len(refused) >= 1


@pytest.mark.process
def test_a_process_that_was_taken_for_dead_ends(output, monkeypatch):
    """It slept, another took over and writes."""
    code = HOLDER.replace("def hold", "import pipelines.cli.lock; pipelines.cli.lock.BEAT_SECONDS = 0.5\ndef hold")
    with subprocess.Popen(
        [sys.executable, "-c", code, output], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        (seen,) = read_locks(output)
        storage.delete(lock_path(output, seen.lock.token))
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 2
        assert "was taken over by another process" in process.stderr.read()
    assert read_locks(output) == []


def test_a_beat_is_a_sign_of_life(output, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    with claimed(output):
        first = read_locks(output)[0].beat
        wait_for(lambda: read_locks(output)[0].beat > first, "a beat")


@pytest.mark.parametrize("where", ["file/a/b", "file/a"])
def test_an_output_that_cannot_be_made_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create --output .*Not a directory"), claimed(str(tmp_path / where)):
        pass


def test_a_bucket_that_is_not_there_is_refused(s3):
    with pytest.raises(UserError, match=r"cannot (write to|reach)"), claimed("s3://no-such-bucket/a"):
        pass
