"""The first process of a host that `helpers.hosts` makes, in namespaces of its own: gives it a name and a disk, then
reaps orphans until the process that started it is gone.

    python host_init.py NAME DISK SHARED NAMES VISIBLE...

DISK holds the host's own /tmp, /var/tmp and /root. SHARED is what all hosts see as /mnt. NAMES becomes /etc/hosts.
Each folder VISIBLE can be read at its own path, also where the host's disk would hide it. All else is read only.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

OWN = ("tmp", "var/tmp", "root")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def mount_disk(disk: Path, shared: Path, names: Path, visible: list[Path]) -> None:
    mount("--bind", disk, disk)  # stays writable when / no longer is
    for folder in visible:
        place = folder
        if any(folder.is_relative_to(f"/{own}") for own in OWN):
            place = disk / folder.relative_to("/")
            place.mkdir(parents=True, exist_ok=True)
        mount("--bind", folder, place)
        mount("-o", "remount,bind,ro", place)
    mount("-t", "tmpfs", "-o", "size=16g", "tmpfs", "/dev/shm")
    mount("--bind", names, "/etc/hosts")
    mount("--bind", "/dev/null", "/etc/resolv.conf")  # a name that is not in /etc/hosts is unknown at once
    mount("--bind", shared, "/mnt")
    mount("-o", "remount,bind,ro", "/")
    for own in reversed(OWN):  # /tmp last: the disk itself may be there
        mount("--rbind", disk / own, f"/{own}")


def end_with_the_starter() -> None:
    sys.stdin.read()
    os._exit(0)  # the kernel then kills every process of the host


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    socket.sethostname(name)
    disk, shared, names, *visible = map(Path, paths)
    mount_disk(disk, shared, names, visible)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    print("ready", flush=True)
    while True:
        with contextlib.suppress(ChildProcessError):
            os.wait()
            continue
        time.sleep(0.1)
