"""A Ray cluster with a token, an S3 server and an MLflow server, each on a host of its own (see `helpers.hosts`), and a
client host that submits jobs."""

import contextlib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from helpers import loopback_s3, mlflow_server
from helpers.faults import PATIENCE, ROOT, Command, wait_for
from helpers.hosts import HOME, Hosts, missing

WORKERS = ("worker1", "worker2")
HEAD_PORT, S3_PORT, MLFLOW_PORT = 6379, 9000, 5000
TOOL = [sys.executable, str(Path(__file__).with_name("hosts_tool.py"))]


class RayHosts(Hosts):
    """head, worker1 and worker2 with one CPU each for Ray, store (S3), tracking (MLflow) and client."""

    def __init__(self, folder: Path, database: Path) -> None:
        """Args:
        database: of MLflow, with its tables; it is copied.
        """
        names = ("head", *WORKERS, "store", "tracking", "client")
        environment = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else all else that runs on this machine goes first
            "RAY_API_SERVER_ADDRESS": "http://head:8265", "MLFLOW_TRACKING_URI": f"http://tracking:{MLFLOW_PORT}",
            "AWS_ENDPOINT_URL": f"http://store:{S3_PORT}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        super().__init__(folder, names, environment)
        home = folder / "disks" / "tracking" / "root"
        (home / "mlflow.db").write_bytes(database.read_bytes())
        self.start_s3()
        self.start_mlflow()
        self.tool("make-bucket", "sounds")

    def start_s3(self) -> None:
        """Its objects are in memory: a store that is to come back with them has its cable cut."""
        argv = [sys.executable, "-c", loopback_s3.SERVER, self.address["store"], str(S3_PORT)]
        self.start("store", argv, self.logs / "s3")
        wait_for(lambda: self.answers("store", S3_PORT), "the S3 server")

    def start_mlflow(self) -> None:
        """Its database and artifacts are on its host's disk."""
        argv = [sys.executable, "-c", mlflow_server.SERVER, self.address["tracking"], str(MLFLOW_PORT)]
        environment = mlflow_server.server_environment(f"sqlite:///{HOME}/mlflow.db", f"file://{HOME}/artifacts")
        allowed = f"tracking:{MLFLOW_PORT}"
        self.start("tracking", argv, self.logs / "mlflow", MLFLOW_SERVER_ALLOWED_HOSTS=allowed, **environment)
        wait_for(lambda: self.answers("tracking", MLFLOW_PORT), "the MLflow server")

    def start_ray(self, *names: str, **variables: str) -> None:
        """Start Ray on the head, then on the others at once.

        Args:
            variables: of Ray's environment.
        """
        for group in (["head"] if "head" in names else [], [name for name in names if name != "head"]):
            started = {name: self._start_ray(name, variables) for name in group}
            for name, process in started.items():
                assert process.wait(PATIENCE) == 0, (self.logs / f"{name}-ray").read_text()

    def _start_ray(self, name: str, variables: Mapping[str, str]):
        kind = ["--head", f"--port={HEAD_PORT}", f"--dashboard-host={self.address[name]}", "--num-cpus=0"]
        if name != "head":
            kind = [f"--address={self.address['head']}:{HEAD_PORT}", "--num-cpus=1"]
        more = [f"--node-ip-address={self.address[name]}", "--object-store-memory=150000000"]
        return self.start(
            name, ["ray", "start", *kind, *more, "--disable-usage-stats"], self.logs / f"{name}-ray", **variables
        )

    def stop_ray(self, *names: str) -> None:
        """End what is left of Ray on hosts that are on."""
        for name in names:
            self.run(name, ["ray", "stop", "--force"])

    def wait_for_nodes(self, *names: str) -> None:
        """Until these hosts, and no others, are the nodes of the cluster, as its head sees it."""
        self.tool("wait-for-nodes", *(self.address[name] for name in names))

    @contextlib.contextmanager
    def submit(
        self, program: str, arguments: Sequence[str], *, cwd: str = str(ROOT), **variables: str
    ) -> Iterator[Command]:
        """A job of the client: `ray job submit -- python PROGRAM ARGUMENTS`, which ends with the job.

        Args:
            variables: of the job's environment.
        """
        runtime = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
        argv = ["ray", "job", "submit", "--working-dir", ".", *runtime, "--", "python", program, *arguments]
        log = self.logs / f"job-{len(list(self.logs.iterdir()))}-{Path(program).stem}"
        process = self.start("client", argv, log, str(ROOT))
        try:
            yield Command(process, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def job(self, program: str, *arguments: str, code: int = 0, **variables: str) -> str:
        """What a job prints from its start to its end; `code` is that of `ray job submit`: 1 where the job failed."""
        with self.submit(program, arguments, **variables) as job:
            assert job.wait() == code, job.text
            return job.text

    def alone(self, program: str, *arguments: str) -> str:
        """The same command on the client host, with a Ray of its own there where it needs one."""
        return self.run("client", [sys.executable, program, *arguments], cwd=str(ROOT))

    def tool(self, *arguments: str) -> str:
        """What tests/helpers/hosts_tool.py says on the client."""
        return self.run("client", [*TOOL, *arguments])

    def fetch(self, uri: str) -> Path:
        """A folder of the store, copied to where this process sees it."""
        folder = f"fetched-{len(list(self.shared.iterdir()))}"
        self.tool("download", uri, f"/mnt/{folder}")
        return self.shared / folder

    def mlflow_runs(self, output: str) -> list[str]:
        """The state of each MLflow run that was recorded for an output."""
        return self.tool("runs", output).split()


@contextlib.contextmanager
def hosts_with_ray(folder: Path, database: Path, *names: str) -> Iterator[RayHosts]:
    """Hosts, switched off after the block; Ray runs on those that are named. The test is skipped where there can be
    none."""
    if reason := missing():
        pytest.skip(reason)
    made = RayHosts(folder, database)
    try:
        made.start_ray(*names)
        yield made
    finally:
        made.close()
