"""Jobs on Ray: each file is one command, its work lies in jobs/, the other folders are what they share."""

import os

from ajepa.openmp import sleep_while_waiting

sleep_while_waiting()

# Read when Ray is imported: what a worker prints is the command's own, without "(name pid=...)" and colours before it.
os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
