"""The files in cluster/: they parse, agree with the pins and with each other, hold no secret, and call Slurm right."""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pathspec
import psutil
import pytest
import yaml
from helpers.faults import PATIENCE

from pipelines.cli.arguments import parse
from pipelines.preprocess import PreprocessArgs
from pipelines.pretrain import parse_args

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def load(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pods():
    """(name, pod spec) of everything that Kubernetes runs."""
    spec = load("kuberay.yaml")[0]["spec"]
    yield "head", spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    yield "mlflow", load("mlflow.yaml")[0]["spec"]["template"]["spec"]


def readme_commands():
    """(script name, arguments) of each `python pipelines/X.py ...` of the README."""
    text = README.replace("\\\n", " ")
    return [(name, shlex.split(rest)) for name, rest in re.findall(r"python pipelines/(\w+)\.py([^\n`]*)", text)]


def option_names(kind):
    """The options of a dataclass; nested ones are flattened without a prefix."""
    names = set()
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(f.type):
            names |= option_names(f.type)
        elif dataclasses.is_dataclass(getattr(f.type, "__origin__", None)):  # Annotated[SomeConfig, ...]
            names |= option_names(f.type.__origin__)
        else:
            names.add("--" + f.name.replace("_", "-"))
    return names


# --- parsing and kinds


def test_kinds():
    kinds = [(d["apiVersion"], d["kind"]) for name in ("kuberay.yaml", "mlflow.yaml") for d in load(name)]
    assert kinds == [("ray.io/v1", "RayCluster"), ("apps/v1", "Deployment"), ("v1", "Service")]


def test_every_file_opens_with_what_it_is_and_its_command():
    for path in CLUSTER.iterdir():
        if path.suffix != ".md":
            head = path.read_text().removeprefix("#!/usr/bin/env bash\n").splitlines()[:3]
            assert all(line.startswith("# ") for line in head), path.name
            assert re.search(r"docker build|kubectl apply|ray up|sbatch", "\n".join(head)), path.name


def test_ray_up_fits_the_schema_of_this_ray():
    ray = Path(importlib.util.find_spec("ray").origin).parent  # not imported: that takes seconds
    schema = json.loads((ray / "autoscaler/ray-schema.json").read_text())
    [config] = load("ray-up.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


# --- versions


def test_versions_are_the_pinned_ones():
    tags = []
    for path in CLUSTER.iterdir():
        tags += re.findall(r"(?:rayproject/ray|/ajepa|mlflow/mlflow):([\w.{}$-]+)", path.read_text())
    ray_tag = re.compile(re.escape(PINS["ray"]) + r"-py311-(cpu|gpu|\$\{PLATFORM\})")
    assert len(tags) >= 9
    for tag in tags:
        assert ray_tag.fullmatch(tag) or tag == f"v{PINS['mlflow']}-full", tag
    assert load("kuberay.yaml")[0]["spec"]["rayVersion"] == PINS["ray"]


def test_the_image_copies_what_an_installation_needs():
    text = (CLUSTER / "Dockerfile").read_text()
    copied = [p for line in re.findall(r"^COPY --chown=\S+ (.*)$", text, re.MULTILINE) for p in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "ajepa", "pipelines"} == set(copied)
    assert all((ROOT / p).exists() for p in copied)
    assert "pip install --no-cache-dir -c constraints.txt '.[ray,av]'" in text
    assert "USER root" not in text


# --- Kubernetes


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_pods_ask_for_what_they_may_use(name, pod):
    for container in pod["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        if name != "mlflow":
            assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
            assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert ("nvidia.com/gpu" in str(pod["containers"])) == (name == "gpu")
    assert pod["containers"][0]["image"].endswith("-gpu") == (name == "gpu")


def test_the_head_takes_no_tasks_and_only_the_cpu_group_scales():
    spec = load("kuberay.yaml")[0]["spec"]
    assert spec["enableInTreeAutoscaling"] is True and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    cpu, gpu = spec["workerGroupSpecs"]
    assert cpu["minReplicas"] < cpu["maxReplicas"]
    assert gpu["minReplicas"] == gpu["replicas"] == gpu["maxReplicas"]


def test_the_mlflow_server_lets_ray_in():
    deployment, service = load("mlflow.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [hosts] = [a.removeprefix("--allowed-hosts=") for a in container["args"] if a.startswith("--allowed-hosts=")]
    hosts = [host.strip() for host in hosts.split(",")]  # as the server reads them
    assert "*" not in "".join(hosts)
    for name, pod in pods():
        if name != "mlflow":
            [uri] = [e["value"] for e in pod["containers"][0]["env"] if e["name"] == "MLFLOW_TRACKING_URI"]
            assert uri.removeprefix("http://") in hosts
    assert f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" in hosts
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_secrets_are_referred_to_and_the_readme_makes_each():
    text = (CLUSTER / "kuberay.yaml").read_text() + (CLUSTER / "mlflow.yaml").read_text()
    used = set(re.findall(r"secret(?:Key)?Ref: \{name: ([\w-]+)", text))
    assert used == set(re.findall(r"create secret generic ([\w-]+)", README))


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda p: p.name)
def test_no_secret_and_no_foreign_address(path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{12,}", text)
    assert not re.search(r"://[^\s/:@$]+:[^\s/@$.]+@", text), "a URI with a password"
    secret = r"(?i)(password|passwd|secret[_-]?access[_-]?key|access_key_id|auth_token|api[_-]?key)\"?\s*[:=]\s*[\"']?"
    for match in re.finditer(secret, text):
        value = text[match.end() :].split("\n")[0]
        assert value.startswith(("$", "~", "{")), f"{match.group()}{value}"
    assert not re.search(r"/home/(?!ray/)\w", text), "somebody's own path"


# --- Slurm


STUBS = {
    "scontrol": 'printf "%s\\n" node1 node2 127.0.0.1',
    # Records the call and the job's token; the head listens, as Ray's does.
    "srun": """echo $$ >>"$PROCESSES"
echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} ${RAY_ADDRESS:-unset} $*" >>"$LOG"
for a in "$@"; do case $a in --node-ip-address=*) ip=${a#*=};; --port=*) port=${a#*=};; esac; done
if [[ -n ${port:-} ]]; then exec "$PYTHON" -c "import socket, time
s = socket.create_server(('$ip', $port)); time.sleep(3600)"; fi
exec sleep 3600""",
}
FAKE_RAY = """
import os, re
def init(**_): pass
def nodes():  # those that were started, and one that is lost
    started = sum(map(int, re.findall("--nodes=([0-9]+)", open(os.environ["LOG"]).read())))
    return [{"Alive": True}] * started + [{"Alive": False}]
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh on three mocked nodes: (completed process, calls of srun, their processes)."""
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "ray.py").write_text(FAKE_RAY)
    log, processes = tmp_path / "log", tmp_path / "processes"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))} | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "fake"), "PYTHON": sys.executable, "LOG": str(log), "PROCESSES": str(processes),
        "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_ON_NODE": "4",
    }  # fmt: skip

    def run(*command):
        done = subprocess.run(
            ["bash", str(CLUSTER / "slurm.sh"), *command],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        return done, *(path.read_text().splitlines() if path.exists() else [] for path in (log, processes))

    return run


@pytest.mark.process
def test_slurm_syntax():
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)
    assert os.access(CLUSTER / "slurm.sh", os.X_OK)


@pytest.mark.process
def test_slurm_starts_all_nodes_runs_the_command_and_stops(slurm):
    done, (head, workers), processes = slurm(
        "bash", "-c", 'echo "at $RAY_ADDRESS: $0 $1"; exit 3', "two words", "--flag"
    )
    assert done.returncode == 3, done.stderr
    joined, ran = done.stdout.splitlines()
    assert joined == "3 nodes joined Ray"
    address, words = re.fullmatch(r"at (127\.0\.0\.1:\d+): (.*)", ran).groups()
    assert words == "two words --flag"
    ip, port = address.split(":")
    assert head.startswith("token 64 unset --nodes=1 --ntasks=1 --nodelist=node1 ")
    assert f"ray start --block --num-cpus=4 --head --node-ip-address={ip} --port={port}" in head
    assert workers.startswith("token 64 unset --nodes=2 --ntasks=2 --exclude=node1 ")
    assert f"ray start --block --num-cpus=4 --address={address}" in workers
    assert len(processes) == 2
    assert not [number for number in processes if psutil.pid_exists(int(number))], "the Ray nodes were not stopped"


@pytest.mark.process
def test_slurm_without_a_command(slurm):
    done, calls, _ = slurm()
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and not calls


# --- the README


def test_readme_names_real_scripts_options_and_files():
    commands = readme_commands()
    assert {"preprocess", "pretrain"} <= {name for name, _ in commands}
    for name, words in commands:
        assert (ROOT / "pipelines" / f"{name}.py").exists(), name
        module = importlib.import_module(f"pipelines.{name}")
        kind = vars(module)[f"{name.title()}Args"]
        options = {w.partition("=")[0] for w in words if w.startswith("--")}
        assert options <= option_names(kind), f"{name}: {options - option_names(kind)}"
    for path in re.findall(r"cluster/[\w.-]+", README):
        assert (ROOT / path).exists(), path
    for path in CLUSTER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in README, path.name


@pytest.mark.parametrize(("name", "words"), readme_commands())
def test_readme_commands_are_accepted(name, words):
    if name == "preprocess":
        args = parse(PreprocessArgs, "", words)
    else:
        assert name == "pretrain"
        args = parse_args(words)
        assert args.config.train.batch_size >= args.num_workers
    assert args.output


def test_a_job_takes_the_code_along_and_no_data():
    """As Ray matches them: paths of files."""
    left_out = pathspec.PathSpec.from_lines("gitwildmatch", (ROOT / ".rayignore").read_text().splitlines())
    data = [
        "mlflow.db", "old/tracking.db-wal", "data/sounds/dataset.json", "sounds/a.flac", "sounds/b.wav", "clips.tar",
        "runs/nano/run.json", "out/status=ok/shard-0.parquet", "elsewhere/model.safetensors", "packs/a.h5",
        ".venv-eval/bin/python", "ajepa/__pycache__/config.pyc", "runs2/mlflow-unsent/1a/run.json",
    ]  # fmt: skip
    assert [path for path in data if not left_out.match_file(path)] == []
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [path for path in tracked if left_out.match_file(path)] == []
