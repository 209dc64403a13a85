"""The loop: ask the oracle, hand the trial to the engine, write down what happened.

A sweep that was cut short, however roughly, is taken up again by replaying its ledger into a fresh
oracle; a trial that was running goes on from its last checkpoint as a new attempt.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnn_search import backend, tracking
from cnn_search.datasets import Dataset
from cnn_search.definition import NOT_IN_DIGEST, Definition, differences, digest
from cnn_search.engines import InlineEngine, interruptible
from cnn_search.errors import LedgerError
from cnn_search.ledger import (
    Event,
    Ledger,
    Record,
    Trial,
    find_sweep,
    hold,
    make_folder,
    read_events,
    sweeps_folder,
)
from cnn_search.oracles import Ask, Oracle, complete, narrow
from cnn_search.surroundings import surroundings, versions
from cnn_search.training import OBJECTIVES, SHOWN_IMAGES, Protocol, Setup, Stop, Task, make_space

GIVE_UP_AFTER = 5  # trials, if every one of them failed

OnEvent = Callable[[Record, Event], None]


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended.

    Attributes:
        folder: The sweep's folder, with its ledger.
        record: What the ledger says now.
        mlflow: Where MLflow keeps it, without credentials.
        undelivered: Why MLflow does not have everything; empty if it has.
        already: The sweep was finished before, and nothing was trained.
    """

    folder: Path
    record: Record
    mlflow: str = ""
    undelivered: str = ""
    already: bool = False


def run(
    definition: Definition,
    dataset: Dataset,
    mlruns: Path,
    *,
    tries: Sequence[Mapping[str, Any]] = (),
    new: bool = False,
    on_event: OnEvent = lambda record, event: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run a sweep to its end, or take up its newest unfinished one.

    Args:
        definition: What to search.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        tries: Configurations of the user's own, as the next trials: values by name, on top of the
            baseline's.
        new: Start a new sweep whatever there is.
        on_event: Told each event, after it was written.
        say: Told what a user should know, a line at a time.

    Returns:
        The record; `record.end` is "finished", "minutes", "exhausted", "failed" or "interrupted"
        ("crashed" after an exception, which is raised).

    Raises:
        CnnSearchError: definition, ledger or tracking server are not as they should be; nothing
            was trained.
    """
    folder = None if new else find_sweep(mlruns, definition.name)
    while folder is None:
        named = sweeps_folder(mlruns) / f"{definition.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if named.exists():  # a second sweep in this second
            time.sleep(0.1)
        else:
            folder = named
    sweep = _Sweep(definition, dataset, folder, tries, on_event, say)
    store = tracking.open_store(mlruns, definition.name, create=True)
    make_folder(folder)
    with hold(folder):
        return sweep.drive(store)


class _Sweep:
    """One run of a driver over one sweep."""

    def __init__(
        self,
        definition: Definition,
        dataset: Dataset,
        folder: Path,
        tries: Sequence[Mapping[str, Any]],
        on_event: OnEvent,
        say: Callable[[str], None],
    ) -> None:
        self.definition, self.dataset, self.folder = definition, dataset, folder
        self.on_event, self.say = on_event, say
        table = definition.training
        self.setup = Setup(
            space=definition.search_space,
            protocol=Protocol(table.epochs, table.patience, table.monitor, table.weights),
            folder=folder,
            objective=definition.objective,
            class_weights=table.class_weights,
            checkpoint_seconds=table.checkpoint_seconds,
            keep_state=definition.oracle.kind == "hyperband",
        )
        space = make_space(self.setup, dataset)
        whole = space.hyperparameters()
        over = definition.oracle.over if definition.oracle.kind == "grid" else None
        self.oracle = Oracle(
            definition.oracle,
            narrow(whole, definition.space, over),
            objective=definition.objective,
            epochs=table.epochs,
            trials=definition.trials,
            seed=definition.seed,
        )
        names = definition.baselines or [next(iter(space.baselines))]
        names = list(space.baselines) if names == ["all"] else names
        self.baselines = [(name, space.baseline_values(name)) for name in names]
        self.tries = [complete(whole, self.baselines[0][1], values) for values in tries]
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.record = self.ledger.record
        self.running: dict[int, Trial] = {}
        self.ending = ""  # why no further trial begins

    def drive(self, store: tracking.Store) -> Outcome:
        """Replay what is on record, then loop until the end."""
        self.ledger.open()
        for note in self.ledger.notes:
            self.say(f"note: {note}")
        if self.record.header:
            self._check_same()
            self._replay()
            if self._is_over():
                self.ledger.close()
                undelivered = tracking.Follower(store, self.folder).deliver()
                return Outcome(self.folder, self.record, store.address, undelivered, already=True)
        else:
            shown = self.dataset.train
            np.savez(
                self.folder / "samples.npz",
                images=shown.images[:SHOWN_IMAGES],
                labels=shown.labels[:SHOWN_IMAGES],
            )
            self._append("sweep", **self._header())
        self._append("session", **surroundings())
        for trial in self._started():
            self._append("killed", trial=trial.number, attempt=trial.attempt)
        engine = InlineEngine(self.setup, self.dataset)
        follower = tracking.Follower(store, self.folder)
        follower.start()
        try:
            engine.start()
            with interruptible(engine):
                self._loop(engine)
            engine.close()  # nothing runs: its thread ends, and lets go of the images
            self._end()
        except BaseException:
            self._crash()
            raise
        finally:
            engine.stop("now")
            with contextlib.suppress(OSError):
                self.ledger.close()
            undelivered = follower.close(self.say)
        return Outcome(self.folder, self.record, store.address, undelivered)

    def _loop(self, engine: InlineEngine) -> None:
        while True:
            while len(self.running) < engine.slots and (trial := self._next()) is not None:
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
                kind, fields = engine.events.get(timeout=self._seconds_left())
            except queue.Empty:
                self._stop_all(engine, "minutes", "epoch")
                continue
            if kind == "interrupt":
                self._stop_all(engine, "interrupted", "now")
                continue
            self._append(kind, **fields)
            if kind in ("done", "failed", "stopped"):
                trial = self.running.pop(fields["trial"])
                if kind != "stopped":
                    self.oracle.tell(trial.number, trial.values, fields.get("score"))
                    self._tidy(trial)

    def _recorded(self, trial: Trial) -> int:
        """Return the last epoch on record; a promoted trial begins where its parent ended."""
        before = {} if trial.parent is None else self.record.trials[trial.parent].curve
        return max(trial.curve or before, default=0)

    def _stop_all(self, engine: InlineEngine, reason: str, when: Stop) -> None:
        self.ending = reason
        for trial in self._started():
            self._append("stop", trial=trial.number, attempt=trial.attempt, reason=reason)
        engine.stop(when)

    def _seconds_left(self) -> float | None:
        """Return what is left of the minutes; None if there is no limit, or it was reached."""
        if self.definition.minutes is None or self.ending:
            return None
        spent = self.record.seconds + time.time() - self.record.last_time
        return max(0.0, 60 * self.definition.minutes - spent)

    def _next(self) -> Trial | None:
        """Return the next trial to run: one that was cut short, a planned one, or the oracle's."""
        if self.ending:
            return None
        if self._seconds_left() == 0.0:
            self.ending = "minutes"
            return None
        trials = self.record.trials
        ended = [trial.status for trial in trials.values() if trial.status != "waiting"]
        if len(ended) >= GIVE_UP_AFTER and set(ended) == {"failed"}:
            self.ending = "failed"
            return None
        for trial in trials.values():
            if trial.status in ("waiting", "stopped") and trial.number not in self.running:
                return trial
        number = len(trials)
        if self.tries and number >= 1:
            return self._ask(number, "try", Ask(self.tries.pop(0)))
        if self.definition.oracle.kind != "hyperband" and number >= self.definition.trials:
            self.ending = "finished"
            return None
        if self.baselines and not self.oracle.starts_with(self.baselines[0][1]):
            name, values = self.baselines.pop(0)
            return self._ask(number, "baseline", Ask(values), name)
        ask = self.oracle.ask(number)
        if ask is None:
            if not self.oracle.idle:
                self.ending = "finished" if self.oracle.kind == "hyperband" else "exhausted"
            return None
        # grid asks for the baseline itself, as its defaults
        name = self.baselines.pop(0)[0] if self.baselines else ""
        return self._ask(number, "oracle", ask, name)

    def _ask(self, number: int, source: str, ask: Ask, baseline: str = "") -> Trial:
        # a promoted trial goes on with its parent's data order and augmentation
        parent = None if ask.parent is None else self.record.trials[ask.parent]
        drawn = int(np.random.SeedSequence([self.definition.seed, number, 1]).generate_state(1)[0])
        self._append(
            "ask",
            trial=number,
            values=ask.values,
            seed=parent.seed if parent else drawn % (2**31 - 1) + 1,
            epochs=ask.epochs or self.definition.training.epochs,
            parent=ask.parent,
            source=source,
            baseline=baseline,
            oracle=ask.oracle,
        )
        return self.record.trials[number]

    def _replay(self) -> None:
        """Ask and tell a fresh oracle everything that is on record, in its order."""
        for event, _ in read_events(self.ledger.path):
            if event["kind"] == "ask":
                if event["baseline"]:
                    self.baselines = [b for b in self.baselines if b[0] != event["baseline"]]
                if event["source"] == "oracle":
                    self.oracle.ask_again(event["trial"], event["values"], event["oracle"])
            elif event["kind"] in ("done", "failed"):
                values = self.record.trials[event["trial"]].values
                self.oracle.tell(event["trial"], values, event.get("score"))
        tried = [t.values for t in self.record.trials.values() if t.source == "try"]
        self.tries = [values for values in self.tries if values not in tried]

    def _is_over(self) -> bool:
        """Return whether nothing is left to do, so that the sweep's answer stands."""
        minutes = self.definition.minutes
        if minutes is not None and self.record.seconds >= 60 * minutes:
            return True
        trials = self.record.trials.values()
        if self.tries or any(t.status in ("waiting", "running", "stopped") for t in trials):
            return False
        more = self.definition.oracle.kind != "hyperband" and len(trials) < self.definition.trials
        return self.record.end in ("exhausted", "failed") or (
            self.record.end == "finished" and not more
        )

    def _end(self) -> None:
        if self.ending != "interrupted" and (ranking := self.record.ranking()):
            if ranking[0].number != self.record.champion:
                self._append("champion", trial=ranking[0].number)
        if self.setup.keep_state and self.ending == "finished":
            for trial in self.record.trials:
                (self.setup.trial_folder(trial) / "checkpoint.npz").unlink(missing_ok=True)
        self._append("end", reason=self.ending)

    def _crash(self) -> None:
        """Write down that what ran is dead; nothing if the ledger itself cannot be written."""
        with contextlib.suppress(Exception):
            for trial in self._started():
                self._append("killed", trial=trial.number, attempt=trial.attempt)
            self._append("end", reason="crashed")

    def _started(self) -> list[Trial]:
        """Return the trials whose running attempt is on record."""
        return [trial for trial in self.record.trials.values() if trial.status == "running"]

    def _tidy(self, ended: Trial) -> None:
        """Delete what nobody needs: the checkpoint of a trial that ended, the weights of losers."""
        if not self.setup.keep_state:
            (self.setup.trial_folder(ended.number) / "checkpoint.npz").unlink(missing_ok=True)
        best = [trial.number for trial in self.record.ranking()[: self.definition.keep_models]]
        for trial in self.record.trials.values():
            if trial.status == "finished" and trial.number not in best:
                (self.setup.trial_folder(trial.number) / "model.keras").unlink(missing_ok=True)

    def _append(self, kind: str, **fields: Any) -> None:
        self.on_event(self.record, self.ledger.append(kind, **fields))

    def _header(self) -> dict[str, Any]:
        data, definition = self.dataset, self.definition
        return {
            "sweep": self.folder.name,
            "definition": definition.as_json(),
            "digest": digest(definition.as_json()),
            "direction": OBJECTIVES[definition.objective],
            "data": {
                "name": data.name,
                "source": data.source,
                "digest": data.digest,
                "class_names": list(data.class_names),
                "input_shape": list(data.input_shape),
                "train_images": len(data.train.labels),
                "validation_images": len(data.validation.labels),
            },
        }

    def _check_same(self) -> None:
        """Refuse to go on with another definition or other images; warn of other versions."""
        header = self.record.header
        now = self.definition.as_json()
        if digest(now) != header["digest"]:
            changed = [
                line
                for line in differences(header["definition"], now)
                if line.split(":")[0] not in NOT_IN_DIGEST
            ]
            raise LedgerError(
                f"{self.folder.name}: expected the definition it was started with; received "
                f"{'; '.join(changed)}. Start a new sweep with --new, or leave the change out."
            )
        if self.dataset.digest != header["data"]["digest"]:
            raise LedgerError(
                f"{self.folder.name}: expected the images it was started with (digest "
                f"{header['data']['digest'][:12]}); received {self.dataset.digest[:12]} from "
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
