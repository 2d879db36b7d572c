"""pretrain.py, but it waits where a test is to meet it, however fast or slow the machine:

    python held_pretrain.py FOLDER OPTIONS-OF-PRETRAIN

After step N rank 0 says FOLDER/held-N and waits while there is a file FOLDER/hold-N, or until it is asked to stop or
to save. See `helpers.faults.Holds`.
"""

import runpy
import sys


def step_that_holds(folder: str, output: str, in_ray: bool):
    """A train_step that waits after the steps that `folder` names."""
    import time
    from pathlib import Path

    from ajepa.training.step import train_step
    from ajepa.training.worker import StopRequest
    from pipelines.rayjobs import stop_requests

    asked = stop_requests.StopPoller(output, 0, in_ray)

    def step_then_hold(state, *args, **kwargs):
        result = train_step(state, *args, **kwargs)
        hold = Path(folder, f"hold-{state.step}")
        if hold.exists():
            Path(folder, f"held-{state.step}").touch()
        while hold.exists() and asked() == StopRequest.GO_ON:
            time.sleep(0.01)
        return result

    return step_then_hold


def hold_steps(folder: str, output: str, in_ray: bool) -> None:
    """Let training in this process do so."""
    from ajepa.training import loop
    from pipelines.rayjobs import stop_requests

    stop_requests.POLL_SECONDS = 0.0  # the step after a hold sees what ended the hold
    loop.train_step = step_that_holds(folder, output, in_ray)


def holding_worker(folder: str):
    """A train_worker that does so on rank 0: the others wait for it in the step that follows."""
    from pipelines.rayjobs.train_workers import train_worker

    def worker(settings: dict) -> None:
        import ray.train

        if ray.train.get_context().get_world_rank() == 0:
            hold_steps(folder, settings["output"], in_ray=True)
        train_worker(settings)

    return worker


if __name__ == "__main__":
    chosen, *arguments = sys.argv[1:]
    if arguments[arguments.index("--num-workers") + 1] == "0":
        hold_steps(chosen, arguments[arguments.index("--output") + 1], in_ray=False)
    else:
        from pipelines.rayjobs import train_workers

        train_workers.train_worker = holding_worker(chosen)
    sys.argv = ["pipelines/pretrain.py", *arguments]
    runpy.run_path("pipelines/pretrain.py", run_name="__main__")
