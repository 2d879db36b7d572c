"""RAY_ADDRESS as people set it: what is no cluster is one line, at once and before anything is written."""

import socket

import pytest

from ajepa.errors import UserError
from pipelines import preprocess, pretrain
from pipelines.cli.command import run_command
from pipelines.rayjobs.cluster import require_head


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://head:8265", "takes jobs, not drivers: submit the command: ray job submit"),
        ("https://head", "takes jobs, not drivers"),
        ("ray://head:10001", "Ray Client is not supported"),
        ("head", "is no address of a cluster: give HEAD:6379"),
        ("head:port", "is no address of a cluster"),
        (":6379", "is no address of a cluster"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
    ],
)
def test_what_is_no_cluster_is_refused(address, message, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=message):
        require_head()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_head_that_answers_is_taken(host, monkeypatch):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), 0), family=family) as head:
        for address in (f"{host}:{head.getsockname()[1]}", "auto", ""):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert require_head() == address


def test_local_is_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert require_head() == ""


@pytest.mark.parametrize("command", [preprocess, pretrain])
def test_a_command_says_so_before_it_writes(command, sounds, small_dataset, tmp_path, mlflow_uri, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and it does not listen
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        argv = {
            preprocess: ["--source", "folder", "--input", str(sounds)],
            pretrain: ["--data", small_dataset.path, "--num-workers", "1"],
        }[command]
        with pytest.raises(SystemExit) as stop:
            run_command(
                lambda: command.main(
                    command.parse_args([*argv, "--output", str(tmp_path / "new"), "--mlflow-uri", mlflow_uri])
                )
            )
    assert stop.value.code == 2 and "no Ray cluster answers at RAY_ADDRESS=127.0.0.1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
