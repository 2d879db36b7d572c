"""Sends the records of one MLflow run from a thread of its own: whoever records never waits for the server. What could
not be sent when the command ends is kept beside its output, for the next command there."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ajepa import storage
from ajepa.errors import UserError, one_line
from ajepa.training.run_folder import HISTORY, read_new_lines
from pipelines.tracking import mlflow_calls, mlflow_uri
from pipelines.tracking.metric_groups import grouped
from pipelines.tracking.mlflow_calls import REFUSED, UNKNOWN, RunGoneError, call, dataset_input, is_final
from pipelines.tracking.mlflow_store import first_line, refusal, require_answer
from pipelines.tracking.mlflow_unsent import (
    UNSENT,
    Run,
    Unsent,
    copy_files,
    delete_unsent,
    read_kept,
    unsent_folders,
    write_unsent,
)  # fmt: skip

SENT = "mlflow-sent.json"  # of an output: how many lines of its histories the run has
POLL_SECONDS = 2.0  # between looks at the histories
STORE_POLL_SECONDS = 15.0  # the same in an object store
LONGEST_WAIT = 60.0  # seconds between tries while the server is away
PATIENCE = 15.0  # seconds without a record sent after which a command ends all the same
MOST_METRICS = 1000  # of a request
NO_METRICS = ("step", "total_steps", "verdict", "part", "time")  # of a report

# MLflow's client would wait for minutes, again and again; here the thread tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@dataclass
class Sender:
    """Records of one run, in the order they came.

    Args:
        uri: of MLflow, with its password.
        output: where what is not sent is kept.
        histories: send also the reports of training, as they are written to the output.
    """

    uri: str
    run: Run
    output: str
    histories: bool = False
    records: deque[dict[str, Any]] = field(default_factory=deque)
    earlier: list["Sender"] = field(default_factory=list)  # of commands before this one
    kept: list[str] = field(default_factory=list)  # folders of UNSENT that these records come from

    def __post_init__(self) -> None:
        self.spool = tempfile.TemporaryDirectory()  # files to send: those of the caller may be gone by then
        self.problem = ""  # why nothing can be sent
        self.refused: BaseException | None = None  # the server's answer about the run itself
        self.progress = 0
        self._ended = False
        self._checked = not self.run.run_id  # whether a run of an earlier command is still there
        self._sent_lines: dict[str, int] = {}
        self._saved_lines: dict[str, int] = {}
        self._read: dict[str, tuple[int, int]] = {}  # reports of a history that were read, and the bytes they take
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._wake, self._tried = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")

    def start(self) -> None:
        """Begin to send, and wait for the answer of the first try.

        Raises:
            UserError: the server will never take the run.
        """
        self._thread.start()
        self._tried.wait()
        if self.refused is not None:
            raise refusal(self.uri, self.refused)

    def put(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._wake.set()

    def put_file(self, path: Path, folder: str | None) -> None:
        name = f"{secrets.token_hex(4)}/{path.name}"
        target = Path(self.spool.name, name)
        target.parent.mkdir()
        shutil.copyfile(path, target)
        self.put({"file": name, "folder": folder})

    def take_over(self, earlier: "Sender") -> None:
        """Send also what an earlier command kept of the same run."""
        self.run.run_id = self.run.run_id or earlier.run.run_id
        self.records.extendleft(reversed(earlier.records))
        for path in Path(earlier.spool.name).iterdir():
            shutil.move(path, self.spool.name)
        self.kept += earlier.kept

    def finish(self, status: str) -> None:
        """Send the rest while the server takes it, and end the run; keep what it did not take."""
        self.run.status = status
        self._ending.set()
        self._wake.set()
        seen, since = self.progress, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < PATIENCE:
            self._thread.join(0.1)
            if self.progress != seen:
                seen, since = self.progress, time.monotonic()
        self._abandoned.set()
        if self._ended:
            self._delete_kept()
        else:
            self._keep()
        self._save_lines()

    def _work(self) -> None:
        wait = 0.0
        poll = STORE_POLL_SECONDS if storage.is_uri(self.output) else POLL_SECONDS
        while not self._abandoned.is_set():
            ending = self._ending.is_set()
            try:
                self._send_all(ending)
                if self.problem:
                    print(f"MLflow at {mlflow_uri.shown(self.uri)} answers again", file=sys.stderr, flush=True)
                self.problem, wait = "", 0.0
            except Exception as error:  # no error of tracking may stop the command
                if not self._tried.is_set() and is_final(error):
                    self.refused = error
                    self._tried.set()
                    return
                if not self.problem:
                    self.problem = first_line(self.uri, error)
                    print(
                        f"warning: cannot record to MLflow at {mlflow_uri.shown(self.uri)} ({self.problem}): what it "
                        "does not get is kept and sent later",
                        file=sys.stderr,
                        flush=True,
                    )
                elif ending:
                    return
                wait = min(LONGEST_WAIT, max(1.0, 2 * wait))
            self._tried.set()
            if ending and not self.problem:
                return
            if not wait:
                self._wake.wait(poll)
                self._wake.clear()
            elif ending:
                self._abandoned.wait(1.0)
            else:  # new records are no reason to ask again
                self._ending.wait(wait)

    def _send_all(self, ending: bool) -> None:
        from mlflow import MlflowClient  # seconds

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it would print the same
        require_answer(self.uri)
        client = MlflowClient(self.uri)
        try:
            self._ensure_run(client)
            self._tried.set()
            while self.records:
                self._send(client, self.records[0])
                self.records.popleft()
                self.progress += 1
            if self.histories:
                self._send_histories(client)
            if ending:
                client.set_terminated(self.run.run_id, self.run.status)
                self._ended = True
                if self.run.status != "FINISHED":
                    mlflow_calls.end_nested(client, self.run.run_id)
        except RunGoneError:
            print(
                f"warning: MLflow at {mlflow_uri.shown(self.uri)} has no run {self.run.run_id} any more: a new one is "
                "started",
                file=sys.stderr,
            )
            self.run.run_id, self._sent_lines = "", {}
            self._checked = True
            self._send_all(ending)
            return
        while self.earlier:
            self.earlier[0]._send_all(ending=True)
            self.earlier.pop(0)._delete_kept()
            self.progress += 1

    def _ensure_run(self, client: Any) -> None:
        from mlflow.entities import Param

        run = self.run
        if not self._checked:
            call(client.update_run, run.run_id, "RUNNING")
            self._checked = True
            if self.histories:
                self._load_lines()
        if not run.run_id:
            experiment = mlflow_calls.experiment_id(client, self.uri, run.experiment)
            mlflow_calls.end_abandoned(client, experiment, run.tags)
            run.run_id = client.create_run(experiment, run_name=run.name, tags=run.tags).info.run_id
            client.log_batch(run.run_id, params=[Param(k, str(v)[:500]) for k, v in run.params.items()])

    def _send(self, client: Any, record: dict[str, Any]) -> None:
        """One record. What the server refuses for good is left out, with a warning."""
        from mlflow.exceptions import MlflowException

        run = self.run.run_id
        try:
            if "metrics" in record:
                self._send_metrics(client, record["metrics"])
            elif "text" in record:
                call(client.log_text, run, record["text"], record["name"])
            elif "file" in record:
                call(client.log_artifact, run, str(Path(self.spool.name, record["file"])), record["folder"])
            elif "note" in record:
                mlflow_calls.set_note(client, run, record["note"])
            else:
                call(client.log_inputs, run, [dataset_input(**record["dataset"])])
        except MlflowException as error:
            what = next(iter(record))
            unknown = what in ("dataset", "note") and error.error_code in UNKNOWN
            if error.error_code not in REFUSED and not unknown:
                raise
            print(f"warning: MLflow refuses a record ({what}): {first_line(self.uri, error)}", file=sys.stderr)

    def _send_metrics(self, client: Any, values: Sequence[Sequence[Any]]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(values), MOST_METRICS):
            part = [Metric(key, value, when, step) for key, value, when, step in values[start : start + MOST_METRICS]]
            call(client.log_batch, self.run.run_id, part)
            self.progress += 1

    def _send_histories(self, client: Any) -> None:
        for name in sorted(n for n in storage.contents(self.output) if n.rpartition("/")[2] == HISTORY):
            part = name.removesuffix(HISTORY)  # "" or "seed0/"
            sent, (read, place) = self._sent_lines.get(part, 0), self._read.get(part, (0, 0))
            if sent < read:  # all of it is sent again, to a new run
                read, place = 0, 0
            lines, place = read_new_lines(storage.join(self.output, name), place)
            for start in range(sent - read, len(lines), 100):
                reports = lines[start : start + 100]
                self._send_metrics(client, [
                    (grouped(key, part=part), float(value), round(report.get("time", 0) * 1000), report["step"])
                    for report in reports for key, value in report.items() if key not in NO_METRICS
                ])  # fmt: skip
                for report in reports:
                    if "verdict" in report:
                        call(client.set_tag, self.run.run_id, "ajepa.verdict", report["verdict"])
                self._sent_lines[part] = read + start + len(reports)
            self._read[part] = read + len(lines), place
        self._save_lines()

    def _load_lines(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, UserError):
            found = json.loads(storage.read_text(storage.join(self.output, SENT)))
            if found["run_id"] == self.run.run_id:
                self._sent_lines = found["lines"]

    def _save_lines(self) -> None:
        if self.histories and self._sent_lines != self._saved_lines:
            with contextlib.suppress(OSError, UserError):  # then lines are sent twice, which MLflow notices
                about = {"run_id": self.run.run_id, "lines": self._sent_lines}
                storage.write_text(storage.join(self.output, SENT), json.dumps(about))
                self._saved_lines = dict(self._sent_lines)

    def _keep(self) -> None:
        """Write what was not sent to the output."""
        records = list(self.records)
        try:
            write_unsent(self.output, Unsent(self.run, records, self.histories), Path(self.spool.name))
            self._delete_kept()
            where = f"kept in {storage.join(self.output, UNSENT)} and sent by the next command on this output"
        except (OSError, UserError) as error:
            where = f"lost, as they cannot be kept: {error}"
        print(f"warning: MLflow did not get {len(records)} records and the end of the run: {where}", file=sys.stderr)

    def _delete_kept(self) -> None:
        delete_unsent(self.output, self.kept)
        self.kept = []


def read_unsent(output: str, uri: str) -> list[Sender]:
    """Senders of what earlier commands kept at an output. What cannot be read is left there, with a warning."""
    senders = []
    for folder in unsent_folders(output):
        try:
            found = read_kept(folder)
            sender = Sender(uri, found.run, output, found.histories, deque(found.records), kept=[folder])
            copy_files(folder, found, Path(sender.spool.name))
            senders.append(sender)
        except (OSError, UserError) as error:
            print(f"warning: records for MLflow are not sent: {one_line(error)}", file=sys.stderr)
    return senders
