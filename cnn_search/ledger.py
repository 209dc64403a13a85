"""The ledger: the append-only record of a sweep, and the truth about it.

One JSON object a line, in the order of events, each on the disk before the next step:

    sweep     the definition, the data's digest and source          (first line, once)
    session   a driver starts: versions, machine, git commit, command
    ask       a trial: values, seed, fidelity, parent, who asked for it
    start     an attempt begins: backend, threads
    epoch     its metrics and seconds
    stop      the driver tells an attempt to stop, and why
    done | failed | stopped | killed                                (how an attempt ended)
    champion  the best trial so far is to be registered
    end       the driver ends, and why

A sweep is resumed by replaying its ledger; MLflow follows it. `check` is the CRC-32 of the line
without it, `n` counts the lines: a line that was changed or lost is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from cnn_search.errors import LedgerError

Event = dict[str, Any]


@dataclass
class Trial:
    """One configuration at one fidelity, as the ledger has it.

    Attributes:
        number: From 0; trial 0 is the baseline.
        values: Hyperparameter values by name.
        seed, epochs, parent: See `training.Task`.
        source: Who asked for it: "baseline", "try" or "oracle".
        baseline: The name of the baseline that it is, or "".
        oracle: What the oracle wants to know again at a replay (Hyperband's "tuner/..." entries).
        status: "waiting", "running", "finished", "failed", or "stopped" (it goes on later).
        attempt: The number of attempts so far.
        curve: Metrics of each epoch, by its number from 1.
        seconds: Of each epoch, by its number.
        result: The fields of "done".
        failure: The fields of "failed".
    """

    number: int
    values: dict[str, Any]
    seed: int
    epochs: int
    parent: int | None
    source: str
    baseline: str
    oracle: dict[str, Any]
    status: str = "waiting"
    attempt: int = 0
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A sweep as its ledger tells it: every event so far, folded."""

    header: Event = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    seconds: float = 0.0
    sessions: int = 0
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    champion: int | None = None
    end: str = ""
    last_time: float = 0.0

    def apply(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["kind"]
        if kind == "session":
            self.sessions += 1
            self.versions, self.end = event["versions"], ""
        elif self.sessions:
            self.seconds += max(0.0, event["time"] - self.last_time)
        self.last_time = event["time"]
        if kind == "sweep":
            self.header = event
        elif kind == "champion":
            self.champion = event["trial"]
        elif kind == "end":
            self.end = event["reason"]
        elif kind == "ask":
            fields = ("values", "seed", "epochs", "parent", "source", "baseline", "oracle")
            self.trials[event["trial"]] = Trial(
                event["trial"], **{name: event[name] for name in fields}
            )
        elif kind != "session":
            self._apply_to_trial(self.trials[event["trial"]], event)

    def _apply_to_trial(self, trial: Trial, event: Event) -> None:
        kind = event["kind"]
        if kind == "start":
            self.threads = event["threads"]
            trial.attempt, trial.status = event["attempt"], "running"
        elif kind == "epoch":
            trial.curve[event["epoch"]] = event["metrics"]
            trial.seconds[event["epoch"]] = event["seconds"]
        elif kind == "done":
            trial.status = "finished"
            trial.result = {
                k: v for k, v in event.items() if k not in ("kind", "n", "time", "trial")
            }
        elif kind == "failed":
            trial.status = "failed"
            trial.failure = {k: event[k] for k in ("reason", "message", "traceback")}
        elif kind in ("stopped", "killed"):
            trial.status = "stopped"

    @property
    def definition(self) -> dict[str, Any]:
        """The definition that the sweep was started with."""
        return self.header["definition"]  # type: ignore[no-any-return]

    @property
    def baseline(self) -> Trial | None:
        """Trial 0, if it finished."""
        trial = self.trials.get(0)
        return trial if trial is not None and trial.status == "finished" else None

    def ranking(self) -> list[Trial]:
        """Return the finished trials of full fidelity, best first, each configuration once.

        Ties in the objective are broken by validation loss, then by fewer parameters, then by age.
        """
        maximise = self.header["direction"] == "max"
        full = self.definition["training"]["epochs"]
        finished = [t for t in self.trials.values() if t.status == "finished" and t.epochs == full]

        def rank(trial: Trial) -> tuple[float, float, int, int]:
            score = trial.result["score"]
            loss, parameters = trial.result["metrics"]["val_loss"], trial.result["parameters"]
            return (-score if maximise else score, loss, parameters, trial.number)

        best: dict[str, Trial] = {}
        for trial in sorted(finished, key=rank):
            best.setdefault(json.dumps(trial.values, sort_keys=True), trial)
        return list(best.values())


class Ledger:
    """The open record of a sweep; one driver at a time holds it (see `hold`).

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = Record()
        self.notes: list[str] = []
        self._lines = 0
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Read what is there into `record`, cut a torn last line off, and open for appending.

        Raises:
            LedgerError: a line that is not the last one is damaged.
        """
        if self.path.exists():
            good = 0
            for event, end in read_events(self.path):
                self.record.apply(event)
                self._lines, good = event["n"], end
            size = self.path.stat().st_size
            if good < size:
                os.truncate(self.path, good)
                self.notes.append(
                    f"{self.path}: the last line was torn ({size - good} bytes of a write that a "
                    "kill cut short); it was cut off."
                )
        self._file = open(self.path, "ab", buffering=0)

    def append(self, kind: str, **fields: Any) -> Event:
        """Write an event; it is on the disk when this returns, and folded into `record`."""
        if self._file is None:
            raise LedgerError(f"{self.path}: expected an open ledger; an earlier write failed.")
        event = {"n": self._lines + 1, "time": round(time.time(), 3), "kind": kind, **fields}
        try:
            self._file.write(_line(event))
            os.fsync(self._file.fileno())
            self._lines += 1
        except BaseException as error:
            self.close()  # how much is on the disk is unknown: the next open settles it
            if isinstance(error, OSError):
                raise LedgerError(
                    f"{self.path}: expected to write an event; received {error.strerror}. Make "
                    "space, then the same command goes on."
                ) from None
            raise
        written: Event = json.loads(json.dumps(event))  # as a replay will read it
        self.record.apply(written)
        return written

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(event: Event) -> bytes:
    text = json.dumps(event)
    return f'{text[:-1]}, "check": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield the events of a ledger from a byte `offset` on, each with the offset behind it.

    A last line that is not whole is left out: it is still being written, or was torn by a kill.

    Raises:
        LedgerError: a line that is not the last one is damaged, or one is missing.
    """
    number, whole = 0, offset == 0
    with open(path, "rb") as file:
        file.seek(offset)
        while line := file.readline():
            event = _parse(line)
            if event is None or (number and event["n"] != number + 1):
                if not file.read(1):
                    return
                where = f"line {number + 1}" if whole else f"the line at byte {offset}"
                raise LedgerError(
                    f"{path}: {where} is damaged (expected a whole JSON object with its own check; "
                    f"received {line[:60]!r}). Restore the file from a copy, or start anew with "
                    "--new."
                )
            number, offset = event["n"], offset + len(line)
            yield event, offset


def _parse(line: bytes) -> Event | None:
    head, found, tail = line.rpartition(b', "check": "')
    if not found or len(tail) != 11 or not tail.endswith(b'"}\n'):
        return None
    body = head + b"}"
    if f"{zlib.crc32(body):08x}".encode() != tail[:8]:
        return None
    event: Event = json.loads(body)
    return event


def read_record(path: Path) -> Record:
    """Return what a ledger tells, without touching it."""
    record = Record()
    for event, _ in read_events(path):
        record.apply(event)
    return record


def sweeps_folder(mlruns: Path) -> Path:
    """Return where the folders of all sweeps are."""
    return mlruns / "sweeps"


def find_sweep(mlruns: Path, name: str) -> Path | None:
    """Return the folder of the newest sweep of this name, or None."""
    folders = sorted(sweeps_folder(mlruns).glob(f"{name}-[0-9]*/ledger.jsonl"))
    folders = [f for f in folders if f.parent.name.rsplit("-", 2)[0] == name]
    return folders[-1].parent if folders else None


def make_folder(folder: Path) -> None:
    """Make a folder below mlruns.

    Raises:
        LedgerError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"{folder}: expected a folder that can be written; {error.strerror}. "
            "Correct it or pass --mlruns."
        ) from None


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder, so that no second driver writes to it.

    Raises:
        LedgerError: another process holds it.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerError(
            f"{folder}: expected to be its only driver; another process holds it. Wait for that "
            "one or stop it; or start another sweep with --new."
        ) from None
    try:
        yield
    finally:
        lock.release()
