"""Jobs on Ray: each file is one command, its work lies in jobs/, the other files are what they share."""

import os

# OpenMP threads that wait for each other spin, by default for milliseconds. Where other processes want the cores, that
# takes them from the thread that is waited for: a step took 4 times as long beside two busy processes on 2 cores, now
# twice as long. Read when torch is imported; Ray's local workers inherit it. GNU's runtime, then LLVM's and Intel's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("KMP_BLOCKTIME", "0")

# Read when Ray is imported: what a worker prints is the command's own, without "(name pid=...)" and colours before it.
os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
