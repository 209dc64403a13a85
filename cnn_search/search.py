"""The loop: ask the oracle, hand the trial to the engine, write down what happened.

A sweep that was cut short, however roughly, is taken up again by replaying its ledger into a fresh
oracle; a trial that was running goes on from its last checkpoint as a new attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_search import tracking
from cnn_search.datasets import Dataset
from cnn_search.definition import NOT_IN_DIGEST, Definition, differences, digest
from cnn_search.driver import Driver, OnEvent, Outcome, Say
from cnn_search.errors import LedgerError
from cnn_search.ledger import (
    Event,
    Record,
    Trial,
    find_sweep,
    hold,
    make_folder,
    read_events,
    sweeps_folder,
)
from cnn_search.oracles import Ask, Oracle, complete, narrow
from cnn_search.training import OBJECTIVES, SHOWN_IMAGES, Protocol, Setup, make_space

GIVE_UP_AFTER = 5  # trials, if every one of them failed


def run(
    definition: Definition,
    dataset: Dataset,
    mlruns: Path,
    *,
    tries: Sequence[Mapping[str, Any]] = (),
    new: bool = False,
    reserve: Callable[[Record], float] = lambda record: 0.0,
    on_event: OnEvent = lambda record, event: None,
    say: Say = lambda line: None,
) -> Outcome:
    """Run a sweep to its end, or take up its newest unfinished one.

    Args:
        definition: What to search.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        tries: Configurations of the user's own, as the next trials: values by name, on top of the
            baseline's.
        new: Start a new sweep whatever there is.
        reserve: Given the record, the seconds of the definition's minutes that are kept for what
            comes after the search.
        on_event: Told each event, after it was written.
        say: Told what a user should know, a line at a time.

    Returns:
        The record; `record.end` is "finished", "exhausted", "failed", "interrupted", or the limit
        that was reached: "minutes", "epochs", "quota", "disk" ("crashed" after an exception, which
        is raised).

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
    search = _Search(definition, dataset, folder, tries, reserve, on_event, say)
    store = tracking.open_store(mlruns, definition.name, create=True)
    make_folder(folder)
    with hold(folder):
        return search.drive(store)


class _Search(Driver):
    """The search of a sweep; final."""

    job, which = "search", "trial"

    def __init__(
        self,
        definition: Definition,
        dataset: Dataset,
        folder: Path,
        tries: Sequence[Mapping[str, Any]],
        reserve: Callable[[Record], float],
        on_event: OnEvent,
        say: Say,
    ) -> None:
        setup = setup_of(definition, folder)
        super().__init__(folder, setup, dataset, definition.engine, on_event, say)
        self.definition, self.reserve = definition, reserve
        self.too_large = False
        space = make_space(setup, dataset)
        whole = space.hyperparameters()
        over = definition.oracle.over if definition.oracle.kind == "grid" else None
        self.oracle = Oracle(
            definition.oracle,
            narrow(whole, definition.space, over),
            objective=definition.objective,
            epochs=definition.training.epochs,
            trials=definition.trials,
            seed=definition.seed,
        )
        self.baselines = list(baseline_values(space, definition.baselines).items())
        if definition.final:  # what is wrong there should not come out after the search
            baseline_values(space, definition.final.baselines)
        self.tries = [complete(whole, self.baselines[0][1], values) for values in tries]

    @property
    def trials(self) -> dict[int, Trial]:
        return self.record.trials

    def begin(self) -> bool:
        """Replay the ledger into the oracle, or begin a new one."""
        if self.record.header:
            self._check_same()
            self._replay()
            return not self._is_over()
        shown = self.dataset.train
        np.savez(
            self.folder / "samples.npz",
            images=shown.images[:SHOWN_IMAGES],
            labels=shown.labels[:SHOWN_IMAGES],
        )
        self.append("sweep", **self._header())
        return True

    def over(self) -> str:
        definition, record = self.definition, self.record
        if definition.minutes is not None:
            spent = record.seconds + max(0.0, time.time() - record.last_time)
            if spent >= 60 * definition.minutes - self.reserve(record):
                return "minutes"
        if definition.epochs_total is not None and record.epochs >= definition.epochs_total:
            return "epochs"
        return "quota" if self.too_large else ""

    def next(self) -> Trial | None:
        """Return the next baseline, the user's own, or what the oracle asks for."""
        trials = self.record.trials
        ended = [trial.status for trial in trials.values() if trial.status != "waiting"]
        if len(ended) >= GIVE_UP_AFTER and set(ended) == {"failed"}:
            self.ending = "failed"
            return None
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

    def ended(self, trial: Trial, event: Event) -> None:
        self.oracle.tell(trial.number, trial.values, event.get("score"))
        self._tidy()
        if self.definition.disk_megabytes is not None:
            size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            self.too_large = size > 1e6 * self.definition.disk_megabytes

    def _ask(self, number: int, source: str, ask: Ask, baseline: str = "") -> Trial:
        # a promoted trial goes on with its parent's data order and augmentation
        parent = None if ask.parent is None else self.record.trials[ask.parent]
        drawn = int(np.random.SeedSequence([self.definition.seed, number, 1]).generate_state(1)[0])
        self.append(
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
        spent = self.record.seconds + self.reserve(self.record)
        if minutes is not None and spent >= 60 * minutes:
            return True
        total = self.definition.epochs_total
        if total is not None and self.record.epochs >= total:
            return True
        trials = self.record.trials.values()
        if self.tries or any(t.status in ("waiting", "running", "stopped") for t in trials):
            return False
        more = self.definition.oracle.kind != "hyperband" and len(trials) < self.definition.trials
        return self.record.end in ("exhausted", "failed") or (
            self.record.end == "finished" and not more
        )

    def finish(self) -> None:
        """Make the best trial the champion."""
        if self.ending != "interrupted" and (ranking := self.record.ranking()):
            if ranking[0].number != self.record.champion:
                self.append("champion", trial=ranking[0].number)

    def _tidy(self) -> None:
        """Delete what nobody needs: checkpoints of what has ended, the weights of losers."""
        trials = self.record.trials.values()
        unended = [t for t in trials if t.status not in ("finished", "failed")]
        needed = {t.number for t in unended} | {t.parent for t in unended}
        needed |= self.oracle.may_promote()
        best = {trial.number for trial in self.record.ranking()[: self.definition.keep_models]}
        for trial in trials:
            folder = self.setup.trial_folder(trial.number)
            if trial.number not in needed:
                (folder / "checkpoint.npz").unlink(missing_ok=True)
            if trial.status == "finished" and trial.number not in best:
                (folder / "model.keras").unlink(missing_ok=True)

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
        """Refuse to go on with another definition or other images."""
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
        self.check_images()


def baseline_values(space: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the values of baselines by name: the space's first if none are named, "all" for each.

    Raises:
        DefinitionError: there is no such baseline.
    """
    names = names or [next(iter(space.baselines))]
    return {n: space.baseline_values(n) for n in (space.baselines if names == ["all"] else names)}


def setup_of(definition: Definition, folder: Path) -> Setup:
    """Return what all trials of a sweep share."""
    table = definition.training
    return Setup(
        space=definition.search_space,
        protocol=Protocol(table.epochs, table.patience, table.monitor, table.weights),
        folder=folder,
        objective=definition.objective,
        class_weights=table.class_weights,
        checkpoint_seconds=table.checkpoint_seconds,
        keep_state=definition.oracle.kind == "hyperband",
    )
