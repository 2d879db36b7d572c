"""Several hosts on one Linux machine: processes in namespaces of their own, joined by a bridge.

Each host has its own network address, host name, process table, /tmp, /var/tmp, /dev/shm and /root; processes of two
hosts meet over TCP alone. The folder `Hosts.shared` is /mnt on all of them, as a file system that is mounted
everywhere; it stays reachable for a host whose cable is out. The rest of the machine's disk is read only. There is no
way to any other network, and nothing of the machine's own network or mounts changes. Hosts end with the process that
made them, however it ends. Their clocks are one, their cores are shared.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from helpers.faults import PATIENCE, ROOT, wait_for

INIT = str(Path(__file__).with_name("host_init.py"))
NETWORK = "10.201.0"
HOME = "/root"  # on the disk of each host
NAMESPACES = ("net", "mount", "uts", "ipc", "pid")


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces: Linux and root are needed"
    if absent := [tool for tool in ("ip", "unshare", "nsenter") if not shutil.which(tool)]:
        return f"{', '.join(absent)} not found: hosts need iproute2 and util-linux"
    made = subprocess.run(
        ["unshare", *(f"--{kind}" for kind in NAMESPACES), "--fork", "--mount-proc", "--propagation", "private",
         "sh", "-c", "ip link add name a type bridge && ip link add name b type veth && mount -t tmpfs none /mnt"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"no hosts on this machine: {made.stderr.strip()}" if made.returncode else None


class Hosts:
    """Hosts by name, on or off. What their processes print is kept in `folder`/logs."""

    def __init__(self, folder: Path, names: Sequence[str], environment: Mapping[str, str]) -> None:
        """Args:
        environment: of all processes, beside PATH, HOME and what Python needs.
        """
        self.folder, self.shared, self.logs = folder, folder / "shared", folder / "logs"
        self.shared.mkdir()
        self.logs.mkdir()
        self.address = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.address.items())]
        (folder / "names").write_text("\n".join(lines) + "\n")
        self.environment = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT), "HOME": HOME, "USER": "root", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",  # what a program prints is in its log at once
            **{name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")},
            **environment,
        }  # fmt: skip
        self._first: dict[str, subprocess.Popen[str]] = {}  # `unshare`, whose child is the first process of a host
        # `cat` keeps the namespace of the bridge, and ends with its input, which ends with this process.
        self._bridge = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{self._bridge.pid}/ns/net").readlink() != own, "a network")
        self._ip(self._bridge.pid, "link add name bridge type bridge")
        self._ip(self._bridge.pid, "link set bridge up")
        for name in names:
            self.on(name)

    def on(self, name: str) -> None:
        """Switch a host on. Its disk is as it was left; nothing runs on it but its first process."""
        assert name not in self._first, f"{name} is on"
        disk = self.folder / "disks" / name
        for own in ("tmp", "var/tmp", "root"):
            (disk / own).mkdir(parents=True, exist_ok=True)
        for own in ("tmp", "var/tmp"):
            (disk / own).chmod(0o1777)
        visible = dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix])
        visible.pop("/usr", None)  # seen anyway
        with (self.logs / f"{name}-first").open("a") as log:
            first = subprocess.Popen(
            ["unshare", *(f"--{kind}" for kind in NAMESPACES), "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", sys.executable, INIT, name, str(disk), str(self.shared),
             str(self.folder / "names"), *visible],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        self._first[name] = first
        assert first.stdout is not None and first.stdout.readline() == "ready\n", f"{name} did not start"
        process, port = self.first_process(name), self._port(name)
        self._ip(self._bridge.pid, f"link add name {port} type veth peer name eth0 netns {process}")
        self._ip(self._bridge.pid, f"link set {port} master bridge up")
        self._ip(process, f"address add {self.address[name]}/24 dev eth0")
        self._ip(process, "link set eth0 up")
        self._ip(process, "route add default dev eth0")  # programs look for the address that leads to the world

    def off(self, name: str) -> None:
        """Cut the power: every process of the host is gone at once, and says good-bye to nobody."""
        first = self._first.pop(name)
        for child in psutil.Process(first.pid).children():
            child.kill()
        first.wait()
        for pipe in (first.stdin, first.stdout):
            assert pipe is not None
            pipe.close()

        def gone() -> bool:  # the kernel takes a network down a little later
            return self._port(name) not in self._ip(self._bridge.pid, "-brief link")

        wait_for(gone, f"the end of {name}")

    def cut(self, name: str) -> None:
        """Take a host's network cable out."""
        self._ip(self._bridge.pid, f"link set {self._port(name)} down")

    def heal(self, name: str) -> None:
        """Put the cable back."""
        self._ip(self._bridge.pid, f"link set {self._port(name)} up")

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A block in which the host's cable is out."""
        self.cut(name)
        try:
            yield
        finally:
            self.heal(name)

    def is_on(self, name: str) -> bool:
        return name in self._first

    def first_process(self, name: str) -> int:
        """The first process of a host, as this machine numbers it."""
        [child] = psutil.Process(self._first[name].pid).children()
        return child.pid

    def start(self, name: str, argv: Sequence[str], log: Path, cwd: str = HOME, **more: str) -> subprocess.Popen:
        """Start a program on a host. Ending the process that is returned does not end the program; `off` does."""
        enter = ["nsenter", "--target", str(self.first_process(name)), *(f"--{kind}" for kind in NAMESPACES)]
        there = ["sh", "-c", 'cd "$0" && exec "$@"', cwd, *argv]
        with log.open("a") as stream:
            return subprocess.Popen(
                [*enter, "--", *there], env=self.environment | more, text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        code: int | None = 0,
        cwd: str = HOME,
        timeout: float = 600,
        **more: str,
    ) -> str:
        """What a program prints on a host. It is to exit with `code`; None: with any."""
        log = self.logs / f"{name}-{len(list(self.logs.iterdir()))}"
        found = self.start(name, argv, log, cwd, **more).wait(PATIENCE)
        text = log.read_text()
        assert code in (None, found), f"exit {found} of {' '.join(argv)} on {name}:\n{text}"
        return text

    def answers(self, name: str, port: int) -> bool:
        """Whether a server takes connections on a host; asked there."""
        test = ["bash", "-c", f": </dev/tcp/{self.address[name]}/{port}"]
        return subprocess.run(["nsenter", "--target", str(self.first_process(name)), "--net", *test],
                              stderr=subprocess.DEVNULL).returncode == 0  # fmt: skip

    def close(self) -> None:
        """Switch everything off."""
        for name in list(self._first):
            self.off(name)
        assert self._bridge.stdin is not None
        self._bridge.stdin.close()
        self._bridge.wait()

    def _port(self, name: str) -> str:
        """The bridge's end of a host's cable; names of devices have up to 15 letters."""
        return f"to-{name}"

    @staticmethod
    def _ip(process: int, arguments: str) -> str:
        """What `ip` says in the network of a process."""
        command = ["nsenter", "--target", str(process), "--net", "ip", *arguments.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
