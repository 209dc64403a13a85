"""The driver: hands trials to the engine and writes down what happens.

What comes next is the search's (`search.py`) or the final scoring's (`final.py`) to say; that
nothing is lost on the way is decided here.
"""

from __future__ import annotations

import abc
import contextlib
import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnn_search import backend, tracking
from cnn_search.datasets import Dataset
from cnn_search.engines import InlineEngine, interruptible
from cnn_search.errors import LedgerError
from cnn_search.ledger import Event, Ledger, Record, Trial
from cnn_search.surroundings import surroundings, versions
from cnn_search.training import Setup, Stop, Task

OnEvent = Callable[[Record, Event], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a run of a driver ended.

    Attributes:
        folder: The sweep's folder, with its ledger.
        record: What the ledger says now.
        mlflow: Where MLflow keeps it, without credentials.
        ending: Why it ended, as the event "end" says.
        undelivered: Why MLflow does not have everything; empty if it has.
        already: Nothing was left to do, and nothing was trained.
    """

    folder: Path
    record: Record
    mlflow: str = ""
    ending: str = ""
    undelivered: str = ""
    already: bool = False


class Driver(abc.ABC):
    """One run over one sweep's ledger; abstract.

    Attributes:
        job: "search" or "final": what a session of it is for.
        which: The field that holds a trial's number in its events.
        running: What the engine has, by number.
        ending: Why no further trial begins; empty while more may.
    """

    job: Literal["search", "final"]
    which: Literal["trial", "final"]

    def __init__(
        self, folder: Path, setup: Setup, dataset: Dataset, on_event: OnEvent, say: Say
    ) -> None:
        self.folder, self.setup, self.dataset = folder, setup, dataset
        self.on_event, self.say = on_event, say
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.record = self.ledger.record
        self.running: dict[int, Trial] = {}
        self.ending = ""

    @property
    @abc.abstractmethod
    def trials(self) -> dict[int, Trial]:
        """The trials of this job on record, by number."""

    @abc.abstractmethod
    def begin(self) -> bool:
        """Take in what is on record; return whether something is left to do."""

    def prepare(self) -> None:  # noqa: B027 - a search has nothing to prepare
        """Write down what is to be done; the session is on record by now."""

    def wants(self, trial: Trial) -> bool:
        """Return whether a trial that was cut short is to go on."""
        return True

    @abc.abstractmethod
    def next(self) -> Trial | None:
        """Return the next trial to run, or None if there is none now; `ending` says why."""

    @abc.abstractmethod
    def ended(self, trial: Trial, event: Event) -> None:
        """Take in that a trial finished or failed."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Do what is left after the last trial, before the event "end"."""

    @abc.abstractmethod
    def seconds_left(self) -> float | None:
        """Return what is left of the minutes; None if there is no limit, or it was reached."""

    def drive(self, store: tracking.Store) -> Outcome:
        """Replay what is on record, then loop until the end."""
        self.ledger.open()
        for note in self.ledger.notes:
            self.say(f"note: {note}")
        if not self.begin():
            self.ledger.close()
            undelivered = tracking.Follower(store, self.folder).deliver()
            return Outcome(
                self.folder, self.record, store.address, undelivered=undelivered, already=True
            )
        self.append("session", job=self.job, **surroundings())
        for trial in self._started():
            self.append("killed", **self._name(trial))
        self.prepare()
        engine = InlineEngine(self.setup, self.dataset)
        follower = tracking.Follower(store, self.folder)
        follower.start()
        try:
            engine.start()
            with interruptible(engine):
                self._loop(engine)
            engine.close()  # nothing runs: its thread ends, and lets go of the images
            self.finish()
            self.append("end", reason=self.ending)
        except BaseException as error:
            self._crash("interrupted" if isinstance(error, KeyboardInterrupt) else "crashed")
            raise
        finally:
            engine.stop("now")
            with contextlib.suppress(OSError):
                self.ledger.close()
            undelivered = follower.close(self.say)
        return Outcome(self.folder, self.record, store.address, self.ending, undelivered)

    def _loop(self, engine: InlineEngine) -> None:
        while True:
            while len(self.running) < engine.slots and (trial := self._unfinished()) is not None:
                self.running[trial.number] = trial
                engine.submit(
                    Task(
                        trial.number,
                        trial.attempt + 1,
                        trial.values,
                        trial.seed,
                        trial.epochs,
                        trial.parent,
                        self._recorded(trial),
                    )
                )
            if not self.running:
                return
            try:
                kind, fields = engine.events.get(timeout=self.seconds_left())
            except queue.Empty:
                self._stop_all(engine, "minutes", "epoch")
                continue
            if kind == "interrupt":
                self._stop_all(engine, "interrupted", "now")
                continue
            number = fields.pop("trial")
            event = self.append(kind, **{self.which: number}, **fields)
            if kind in ("done", "failed", "stopped"):
                trial = self.running.pop(number)
                if kind != "stopped":
                    self.ended(trial, event)

    def _unfinished(self) -> Trial | None:
        """Return a trial that was cut short or never began, else a new one."""
        if self.ending:
            return None
        if self.seconds_left() == 0.0:
            self.ending = "minutes"
            return None
        for trial in self.trials.values():
            cut_short = trial.status in ("waiting", "stopped")
            if cut_short and trial.number not in self.running and self.wants(trial):
                return trial
        return self.next()

    def _recorded(self, trial: Trial) -> int:
        """Return the last epoch on record; a promoted trial begins where its parent ended."""
        before = {} if trial.parent is None else self.trials[trial.parent].curve
        return max(trial.curve or before, default=0)

    def _stop_all(self, engine: InlineEngine, reason: str, when: Stop) -> None:
        self.ending = reason
        for trial in self._started():
            self.append("stop", **self._name(trial), reason=reason)
        engine.stop(when)

    def _crash(self, reason: str) -> None:
        """Write down that what ran is dead; nothing if the ledger itself cannot be written."""
        with contextlib.suppress(Exception):
            for trial in self._started():
                self.append("killed", **self._name(trial))
            self.append("end", reason=reason)

    def _started(self) -> list[Trial]:
        """Return the trials whose running attempt is on record."""
        return [trial for trial in self.trials.values() if trial.status == "running"]

    def _name(self, trial: Trial) -> dict[str, Any]:
        return {self.which: trial.number, "attempt": trial.attempt}

    def append(self, kind: str, **fields: Any) -> Event:
        """Write an event down, then tell who listens."""
        event = self.ledger.append(kind, **fields)
        self.on_event(self.record, event)
        return event

    def check_images(self) -> None:
        """Refuse other images than those on record; warn of other versions and threads.

        Raises:
            LedgerError: the training part is another one.
        """
        data = self.record.header["data"]
        if self.dataset.digest != data["digest"]:
            raise LedgerError(
                f"{self.folder.name}: expected the images it was started with (digest "
                f"{data['digest'][:12]}); received {self.dataset.digest[:12]} from "
                f"{self.dataset.source}. Start a new sweep with --new."
            )
        before, after = self.record.versions, versions()
        for name in sorted({*before, *after}):
            if before and before.get(name) != after.get(name):
                self.say(f"warning: {name} was {before.get(name)}, is {after.get(name)}.")
        threads = backend.describe()["threads"]
        if self.record.threads not in (0, threads):
            self.say(
                f"warning: trained with {self.record.threads} threads so far, now with {threads}, "
                f"which changes the fifth digit of a curve. As before: --threads "
                f"{self.record.threads}."
            )
