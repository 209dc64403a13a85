"""Retraining: configurations of a finished search, trained anew with fresh seeds.

What the final scoring (`final.py`) and the ablation (`ablation.py`) share. The n-th retraining of
every configuration has the same seed, so one that both ask for is trained once.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_search import tracking
from cnn_search.datasets import Dataset
from cnn_search.definition import EngineTable, from_record
from cnn_search.driver import Driver, OnEvent, Outcome, Say
from cnn_search.errors import LedgerError
from cnn_search.ledger import Event, Record, Trial, hold
from cnn_search.subject import setup_of
from cnn_search.training import make_space


class Wanted(NamedTuple):
    """A retraining: whose, with which values, and which of its seeds, counted from 0."""

    finalist: str
    values: Mapping[str, Any]
    replicate: int


class Retrainer(Driver):
    """Trains configurations anew; abstract."""

    job, which = "final", "final"

    def __init__(
        self,
        folder: Path,
        record: Record,
        dataset: Dataset,
        minutes: float | None,
        engine: EngineTable | None,
        on_event: OnEvent,
        say: Say,
    ) -> None:
        if not record.header or not record.ranking():
            raise LedgerError(
                f"{folder.name}: expected a trial that finished, to train anew; there is none. Let "
                "the sweep go on first."
            )
        self.definition = from_record(record.definition)
        setup = setup_of(self.definition, folder / "final")
        setup = replace(setup, keep_state=False, both_weights=True)
        engine = engine or self.definition.engine
        super().__init__(folder, setup, dataset, engine, on_event, say)
        self.space = make_space(setup, dataset)
        self.ends_at = None if minutes is None else time.monotonic() + 60 * minutes

    def run(self, mlruns: Path) -> Outcome:
        """Hold the sweep, and train what is wanted."""
        store = tracking.open_store(mlruns, self.definition.name, create=True)
        with hold(self.folder):
            return self.drive(store)

    @abc.abstractmethod
    def wanted(self) -> Iterator[Wanted]:
        """Yield what is to be trained, in order, as far as what is on record allows to say."""

    @property
    def trials(self) -> dict[int, Trial]:
        return self.record.finals

    def seed(self, replicate: int) -> int:
        """Return the seed of the n-th retrainings; no trial of the search has it."""
        drawn = np.random.SeedSequence([self.definition.seed, replicate, 3]).generate_state(1)[0]
        return int(drawn) % (2**31 - 1) + 1

    def find(self, wanted: Wanted) -> Trial | None:
        """Return a retraining that is on record, whoever asked for it."""
        seed = self.seed(wanted.replicate)
        same = (t for t in self.trials.values() if t.seed == seed and t.values == wanted.values)
        return next(same, None)

    def wants(self, trial: Trial) -> bool:
        return any(self.find(wanted) is trial for wanted in self.wanted())

    def next(self) -> Trial | None:
        for wanted in self.wanted():
            if self.find(wanted) is None:
                number = len(self.trials)
                self.append(
                    "retrain",
                    final=number,
                    finalist=wanted.finalist,
                    values=dict(wanted.values),
                    seed=self.seed(wanted.replicate),
                    epochs=self.definition.training.epochs,
                )
                return self.trials[number]
        if not self.running:  # what is wanted next may hang on those
            self.no_more = "finished"
        return None

    def over(self) -> str:
        late = self.ends_at is not None and time.monotonic() >= self.ends_at
        return "minutes" if late else ""

    def ended(self, trial: Trial, event: Event) -> None:
        (self.setup.trial_folder(trial.number) / "checkpoint.npz").unlink(missing_ok=True)

    def drop_other_weights(self) -> None:
        """Delete the weights that the protocol does not keep: only the test part needs them."""
        for number in self.trials:
            for weights in ("best", "last"):
                (self.setup.trial_folder(number) / f"{weights}.keras").unlink(missing_ok=True)
