"""A Slurm of Debian's packages: its controller on one host, its daemons on two nodes (see `helpers.hosts`). All of them
see the checkout and /mnt, as Slurm's nodes see a shared file system."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from helpers import hosts
from helpers.faults import ROOT, Command, wait_for

NODES = ("node1", "node2")
OWN = f"{hosts.HOME}/slurm"  # sockets, state, keys
CONFIG = f"""
ClusterName=tests
SlurmctldHost=control
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={OWN}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={OWN}/state
SlurmdSpoolDir={OWN}/spool
SlurmctldPidFile={OWN}/slurmctld.pid
SlurmdPidFile={OWN}/slurmd.pid
NodeName=node1,node2 CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "srun")


def missing() -> str | None:
    """Why there is no Slurm on hosts of this machine; None where there can be one."""
    path = os.environ["PATH"] + ":/usr/sbin"
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        return f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge"
    return hosts.missing()


class SlurmHosts(hosts.Hosts):
    """control, node1 and node2 with one CPU each. Jobs are submitted on control."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ("control", *NODES), {
            "SLURM_CONF": "/mnt/slurm.conf", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
            "MLFLOW_TRACKING_URI": "sqlite:////mnt/mlflow.db",
        })  # fmt: skip
        (self.shared / "slurm.conf").write_text(CONFIG)
        key = os.urandom(128)
        for name in ("control", *NODES):
            own = folder / "disks" / name / OWN.removeprefix("/")
            for part in ("state", "spool"):
                (own / part).mkdir(parents=True)
            (own / "munge.key").write_bytes(key)
            (own / "munge.key").chmod(0o400)
            files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid",
                     "log-file": "munge.log", "seed-file": "munge.seed"}  # fmt: skip
            options = [f"--{option}={OWN}/{file}" for option, file in files.items()]
            # --force: the socket's folder is closed to other users, of whom there are none
            self.start(name, ["munged", "--foreground", "--force", *options], self.logs / f"{name}-munge")
            wait_for((own / "munge.socket").exists, f"munge on {name}")
        self.start("control", ["slurmctld", "-D"], self.logs / "slurmctld")
        for name in NODES:
            self.start(name, ["slurmd", "-D"], self.logs / f"{name}-slurmd")
        self.run(
            "control",
            ["bash", "-c", f"until [[ $(sinfo -hN -o %T | grep -c idle) == {len(NODES)} ]]; do sleep 1; done"],
        )

    @contextlib.contextmanager
    def submit(self, *arguments: str, name: str) -> Iterator[tuple[str, Command]]:
        """(number, log and end of a job): `sbatch ARGUMENTS` in the project's folder, which ends with the job."""
        answer, log = self.logs / f"{name}-sbatch", self.shared / f"{name}.log"
        log.touch()
        argv = ["sbatch", "--wait", f"--output=/mnt/{log.name}", "--open-mode=append", *arguments]
        process = self.start("control", argv, answer, cwd=str(ROOT))
        try:
            wait_for(lambda: "\n" in answer.read_text(), "an answer of sbatch")
            yield re.findall(r"Submitted batch job (\d+)", answer.read_text())[0], Command(process, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
