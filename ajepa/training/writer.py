"""Checkpoints written by a thread while training goes on: one at a time, errors said at the next occasion."""

import contextlib
import errno
import threading

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.training.checkpoint import checkpoint_path, note_best, prune_checkpoints, snapshot, write_checkpoint
from ajepa.training.step import TrainState


class CheckpointWriter:
    """Writes a run's checkpoints. The state is copied before `save` returns, so it may be advanced at once.

    Raises (from `save` and `close`):
        UserError: the disk or store refused the last checkpoint. What was half written is deleted; the checkpoints
            before it are intact, and the same command goes on from there.
    """

    def __init__(self, run: str, dataset: ShardDataset, reader: ShardReader, keep: int) -> None:
        self.run, self.dataset, self.reader, self.keep = run, dataset, reader, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.saved_step = -1  # the last one handed over

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Write the state; `score` (higher is better) decides which checkpoint is kept as the best."""
        self.close()
        shot = snapshot(state, self.dataset, self.reader.state_dict())
        self.saved_step = state.step
        folder = checkpoint_path(self.run, state.step)

        def work() -> None:
            try:
                write_checkpoint(folder, shot)
                if score is not None:
                    note_best(self.run, shot.step, score)
                prune_checkpoints(self.run, self.keep, shot.step)
            except BaseException as error:  # handed over, not swallowed
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
                "Make room or mend it, then run the same command again: it goes on from the checkpoint before"
            ) from error
        if error is not None:
            raise error
