"""How OpenMP threads wait for each other. Read once, when torch is imported: this comes before it, and imports nothing
that takes long."""

import os


def sleep_while_waiting() -> None:
    """Let threads that wait sleep, unless the environment says otherwise; child processes inherit it.

    By default they spin for milliseconds. Where other processes want the cores, that takes them from the thread that is
    waited for: a step took 4 times as long beside two busy processes on 2 cores, now twice as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's runtime
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's
