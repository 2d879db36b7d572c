"""Checkpoints written by a thread while training goes on: one at a time; an error is raised by the next call."""

import contextlib
import errno
import threading
from collections.abc import Callable

from ajepa import storage
from ajepa.checkpoints import Snapshot, checkpoint_path, note_best, prune_checkpoints, write_checkpoint
from ajepa.errors import UserError


class CheckpointWriter:
    """Writes a run's checkpoints. The state is copied before `save` returns, so it may be advanced at once.

    Args:
        keep: newest checkpoints kept, beside the best one.
        take: copies the state.
        later_wins: of two checkpoints with the same score the later one is the better.

    Raises (from `save` and `close`):
        UserError: the disk or store refused the last checkpoint. What was half written is deleted; the checkpoints
            before it are intact, and the same command goes on from there.
    """

    def __init__(self, run: str, keep: int, take: Callable[[], Snapshot], later_wins: bool = False) -> None:
        self.run, self.keep, self._take, self._later_wins = run, keep, take, later_wins
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.saved_step = -1  # the last one given to the thread

    def save(self, score: float | None = None) -> None:
        """Write the state; `score` (higher is better) decides which checkpoint is kept as the best."""
        self.close()
        shot = self._take()
        self.saved_step = shot.step
        folder = checkpoint_path(self.run, shot.step)

        def work() -> None:
            try:
                write_checkpoint(folder, shot)
                if score is not None:
                    note_best(self.run, shot.step, score, self._later_wins)
                prune_checkpoints(self.run, self.keep, shot.step)
            except BaseException as error:  # raised by the caller, not lost
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def close(self) -> None:
        """Wait for the checkpoint under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            folder = checkpoint_path(self.run, self.saved_step)
            with contextlib.suppress(OSError):  # it has no manifest: it would be passed over
                storage.delete(folder)
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error).splitlines()[0]
            raise UserError(
                f"cannot write the checkpoint {folder!r}: {reason}. "
                "Make room or fix the cause, then run the same command again: it goes on from the checkpoint before"
            ) from error
        if error is not None:
            raise error
