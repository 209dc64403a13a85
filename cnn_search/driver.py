"""The driver: hands trials to the engine and writes down what happens.

What comes next is the search's (`search.py`) or the final scoring's (`final.py`) to say; that
nothing is lost on the way is decided here.
"""

from __future__ import annotations

import abc
import contextlib
import math
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnn_search import backend, tracking
from cnn_search.crash import read_crash
from cnn_search.datasets import Dataset
from cnn_search.definition import EngineTable
from cnn_search.engines import Engine, InlineEngine, interruptible
from cnn_search.errors import LedgerError
from cnn_search.ledger import ENDINGS, Event, Ledger, Record, Trial
from cnn_search.spaces import fingerprint
from cnn_search.surroundings import surroundings, versions
from cnn_search.training import CRASH, Setup, Stop, Task

OnEvent = Callable[[Record, Event], None]
Say = Callable[[str], None]
TICK_SECONDS = 1.0  # at most so long until a limit is noticed
CHOSEN = ("oracle", "earlier", "recipe")  # sources of trials that nobody asked for by name
QUARANTINE = 2  # workers that a configuration killed, after which it is not tried again


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
        ending: Why no trial begins or goes on; empty while one may.
        no_more: Why no new trial begins; one that is cut short still goes on.
    """

    job: Literal["search", "final"]
    which: Literal["trial", "final"]

    def __init__(
        self,
        folder: Path,
        setup: Setup,
        dataset: Dataset,
        table: EngineTable,
        on_event: OnEvent,
        say: Say,
    ) -> None:
        self.folder, self.setup, self.dataset, self.engine_table = folder, setup, dataset, table
        self.on_event, self.say = on_event, say
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.record = self.ledger.record
        self.running: dict[int, Trial] = {}
        self.ending = self.no_more = ""
        self._deadlines: dict[int, float] = {}  # of running trials, by number
        self._killed_at: dict[int, float] = {}  # when those that are late are killed

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
        """Return the next trial to run; None if there is none now, or `no_more` says why not."""

    def prunes(self, trial: Trial, event: Event) -> bool:
        """Return whether a trial is to end with this epoch, as others are better."""
        return False

    @abc.abstractmethod
    def ended(self, trial: Trial, event: Event) -> None:
        """Take in that a trial finished, failed, or was pruned or refused."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Do what is left after the last trial, before the event "end"."""

    @abc.abstractmethod
    def over(self) -> str:
        """Return why the running epochs are to be the last, as a limit was reached; else ""."""

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
        engine = make_engine(self.engine_table, self.setup, self.dataset, self.say)
        engine.start()
        follower = tracking.Follower(store, self.folder)
        follower.start()
        try:
            self.append("session", job=self.job, **surroundings())
            for trial in self._started():
                self._find_dead(trial)
            self.prepare()
            with interruptible(engine):
                self._loop(engine)
            engine.close(wait=True)  # nothing runs: it lets go of the images
            self.finish()
            self.append("end", reason=self.ending)
        except BaseException as error:
            self._crash("interrupted" if isinstance(error, KeyboardInterrupt) else "crashed")
            with contextlib.suppress(Exception):  # the engine may be what failed
                engine.stop("now")
                engine.close(wait=False)
            raise
        finally:
            with contextlib.suppress(OSError):
                self.ledger.close()
            undelivered = follower.close(self.say)
        return Outcome(self.folder, self.record, store.address, self.ending, undelivered)

    def _loop(self, engine: Engine) -> None:
        while True:
            while (
                len(self.running) < (slots := engine.slots())
                and (trial := self._unfinished()) is not None
            ):
                if not self._is_quarantined(trial):
                    self.running[trial.number] = trial
                    engine.submit(self._task(trial))
            if not self.ending and (reason := self.over()):
                self._stop_all(engine, reason, "epoch")
            if not self.running and (self.ending or slots):  # those that were seen to be free
                self.ending = self.ending or self.no_more
                return
            try:
                kind, fields = engine.events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                pass
            else:
                if kind == "interrupt":
                    self._stop_all(engine, "interrupted", "now")
                elif kind != "joined":  # a worker: there may be a slot
                    self._take_in(kind, fields, engine)
            self._end_late(engine)

    def _task(self, trial: Trial) -> Task:
        return Task(
            trial.number,
            trial.attempt + 1,
            trial.values,
            trial.seed,
            trial.epochs,
            trial.parent,
            self._recorded(trial),
            limited=trial.source in CHOSEN,
        )

    def _is_quarantined(self, trial: Trial) -> bool:
        """Return whether a trial's configuration killed its workers before; then it has failed."""
        if self._deaths(trial) < QUARANTINE:
            return False
        attempt = {self.which: trial.number, "attempt": trial.attempt + 1}
        self.append("start", **attempt, backend="none", threads=0)
        message = "trials of the same configuration killed their workers; it was not begun"
        self._fail(trial, "died", message)
        return True

    def _take_in(self, kind: str, fields: dict[str, Any], engine: Engine) -> None:
        """Write down what the engine tells."""
        number = fields.pop("trial")
        if number not in self.running:
            return  # it was killed, and has failed
        trial = self.trials[number]
        pruned = trial.status == "pruned"
        if kind == "start":
            minutes = self.engine_table.max_minutes or math.inf
            spent = sum(trial.seconds.values())  # in earlier attempts
            self._deadlines[number] = time.monotonic() + 60 * minutes - spent
        late = number in self._killed_at
        if kind in (*ENDINGS, "stopped", "died"):
            del self.running[number], self._deadlines[number]
            self._killed_at.pop(number, None)
        if pruned:
            return  # what it did until the word reached it is not on record
        if kind == "died":
            self._bury(trial, fields["reason"], fields["message"])
        elif kind == "stopped" and late:
            self._fail(trial, "timeout", self._lateness())
        else:
            event = self.append(kind, **{self.which: number}, **fields)
            if kind in ENDINGS:
                self.ended(trial, event)
            elif kind == "epoch" and self.prunes(trial, event):
                self.prune(trial, event)
                engine.stop("now", number)
                self._deadlines[number] = time.monotonic()
                self._killed_at[number] = time.monotonic() + engine.grace_seconds
            elif kind == "stopped" and fields.get("reason") == "disk" and not self.ending:
                self._stop_all(engine, "disk", "now")

    def prune(self, trial: Trial, event: Event) -> None:
        """Write down that a trial ends with an epoch."""
        name = {**self._name(trial), "epoch": event["epoch"]}
        self.ended(trial, self.append("pruned", **name))

    def _find_dead(self, trial: Trial) -> None:
        """Write down that a trial ended with its driver, which crashed under it or was killed."""
        if self._crash_of(trial):
            self._bury(trial, "died", "the process crashed")
        else:
            self.append("killed", **self._name(trial))

    def _bury(self, trial: Trial, reason: str, message: str) -> None:
        """Write down that a trial's worker ended under it: it is tried again, or has failed."""
        crash = self._crash_of(trial)
        if crash:
            message += f" ({crash.splitlines()[0]})"
        deaths = self._deaths(trial) + (reason != "lost")
        if deaths >= QUARANTINE or len(trial.deaths) + 1 >= self.engine_table.max_attempts:
            message += f"; after {trial.attempt} attempts it was given up"
            self._fail(trial, reason, message, crash)
        else:
            self.append("killed", **self._name(trial), reason=reason, message=message)

    def _crash_of(self, trial: Trial) -> str:
        return read_crash(self.setup.trial_folder(trial.number) / CRASH)

    def _deaths(self, trial: Trial) -> int:
        """Return how many workers a configuration has killed."""
        same = (t for t in self.trials.values() if t.values == trial.values)
        return sum(reason != "lost" for t in same for reason in t.deaths)

    def _fail(self, trial: Trial, reason: str, message: str, trace: str = "") -> None:
        told = {"reason": reason, "message": message, "traceback": trace}
        self.ended(trial, self.append("failed", **self._name(trial), **told))

    def _end_late(self, engine: Engine) -> None:
        """Stop the trials that take longer than they may; kill those that do not stop."""
        now = time.monotonic()
        for number in [n for n, deadline in self._deadlines.items() if now > deadline]:
            trial = self.trials[number]
            if number not in self._killed_at:
                self._killed_at[number] = now + engine.grace_seconds
                self.append("stop", **self._name(trial), reason="timeout")
                engine.stop("now", number)
            elif now > self._killed_at[number]:
                del self.running[number], self._deadlines[number], self._killed_at[number]
                if trial.status != "pruned":
                    self._fail(trial, "timeout", f"{self._lateness()}, and did not stop")
                engine.kill(number)

    def _lateness(self) -> str:
        return f"took longer than max_minutes = {self.engine_table.max_minutes:g}"

    def _unfinished(self) -> Trial | None:
        """Return a trial that was cut short or never began, else a new one."""
        if self.ending or self.over():
            return None
        for trial in self.trials.values():
            cut_short = trial.status in ("waiting", "stopped")
            if cut_short and trial.number not in self.running and self.wants(trial):
                return trial
        return None if self.no_more else self.next()

    def _recorded(self, trial: Trial) -> int:
        """Return the last epoch on record; a promoted trial begins where its parent ended."""
        family = [trial] if trial.parent is None else self.record.lineage(trial)
        return max((epoch for one in family for epoch in one.curve), default=0)

    def _stop_all(self, engine: Engine, reason: str, when: Stop) -> None:
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

    def check_space(self, whole: Any) -> None:
        """Refuse a declared space that is not the one on record.

        Raises:
            LedgerError: it was edited since.
        """
        now = fingerprint(whole)
        if self.record.header.get("space", now) != now:
            raise LedgerError(
                f"{self.folder.name}: expected the space that it was started with; received one "
                f"that was edited since ({self.setup.space}). Start a new sweep with --new."
            )

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
        if self.record.threads not in (0, threads) and not self.engine_table.scheduler:
            self.say(
                f"warning: trained with {self.record.threads} threads so far, now with {threads}, "
                f"which changes the fifth digit of a curve. As before: --threads "
                f"{self.record.threads}."
            )


def make_engine(table: EngineTable, setup: Setup, dataset: Dataset, say: Say) -> Engine:
    """Return the engine that a definition asks for; nothing is started yet."""
    if not (table.workers or table.scheduler or table.gpus or table.max_megabytes):
        return InlineEngine(setup, dataset)
    from cnn_search.cluster import DaskEngine

    return DaskEngine(table, setup, dataset, say)
