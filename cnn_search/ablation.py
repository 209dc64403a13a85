"""The ablation: from the book's model to the winner, one change at a time; which brought how much.

After Fawcett and Hoos 2016, doi.org/10.1007/s10732-014-9275-9, with one difference that keeps it
affordable: the order of the path is that of the gain of each change alone on the book's model, and
not found anew after every step. Judged by validation: the test part is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_search.datasets import Dataset
from cnn_search.definition import EngineTable
from cnn_search.driver import OnEvent, Outcome, Say
from cnn_search.errors import LedgerError
from cnn_search.ledger import ENDED, Record, Trial, read_record
from cnn_search.retraining import Retrainer, Wanted
from cnn_search.spaces import complete, declared

ROOTS = {  # hyperparameters that mean little without each other are one change
    "pooling": ("pooling", "pooling_place", "pool_size"),
    "normalisation": ("normalisation", "normalisation_place"),
    "head": ("head", "dense_units", "head_normalisation", "head_dropout"),
    "augmentation": ("shift", "zoom", "flip", "flip_alternates", "rotation", "crop", "cutout")
    + ("fill",),
    "optimiser": ("optimiser", "learning_rate", "sgd_learning_rate", "momentum", "schedule")
    + ("warmup", "batch_size"),
    "averaging": ("averaging", "lookahead"),
}


def group(name: str) -> str:
    """Return the change that a hyperparameter is part of: "filters_2" is of "filters"."""
    root = re.sub(r"_\d+$", "", name)
    return next((change for change, roots in ROOTS.items() if root in roots), root)


def run(
    folder: Path,
    dataset: Dataset,
    mlruns: Path,
    *,
    seeds: int | None = None,
    minutes: float | None = None,
    engine: EngineTable | None = None,
    on_event: OnEvent = lambda record, event: None,
    say: Say = lambda line: None,
) -> Outcome:
    """Find out which change brought how much; goes on with one that was cut short.

    Args:
        folder: The folder of a sweep that was scored.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        seeds: How often each configuration is trained; as in the final scoring, if not given.
        minutes: Training ends after the epoch that runs then; it can go on later.
        engine: Where to train; by default as the sweep was started.
        on_event: Told each event, after it was written.
        say: Told what a user should know, a line at a time.

    Raises:
        CnnSearchError: the sweep was not scored, its winner is the book's, or the images are
            others.
    """
    record = read_record(folder / "ledger.jsonl")
    ablation = _Ablation(folder, record, dataset, seeds, minutes, engine, on_event, say)
    return ablation.run(mlruns)


class _Ablation(Retrainer):
    """The ablation of a sweep's winner; final."""

    def __init__(
        self,
        folder: Path,
        record: Record,
        dataset: Dataset,
        seeds: int | None,
        minutes: float | None,
        engine: EngineTable | None,
        on_event: OnEvent,
        say: Say,
    ) -> None:
        super().__init__(folder, record, dataset, minutes, engine, on_event, say)
        if not record.scored:
            raise LedgerError(
                f"{folder.name}: expected a sweep that was scored; this one was not. Run "
                f"`python -m cnn_search.score {self.definition.name}` first."
            )
        finalists = {f["name"]: f for f in record.plans[-1]["finalists"]}
        book, winner = record.plans[-1]["finalists"][0], finalists[record.scored["winner"]]
        if winner["name"] == book["name"]:
            raise LedgerError(
                f"{folder.name}: expected a winner that differs from the book's model; it is "
                f"{winner['name']}. There is nothing to take apart."
            )
        self.whole = self.space.hyperparameters()
        self.book, self.best = book["values"], winner["values"]
        names = [n for n in {**self.book, **self.best} if self.book.get(n) != self.best.get(n)]
        self.plan = {
            "book": book["name"],
            "winner": winner["name"],
            "changes": list(dict.fromkeys(group(name) for name in names)),
            "seeds": seeds or record.plans[-1]["seeds"],
        }

    def begin(self) -> bool:
        self.check_images()
        found = [self.find(wanted) for wanted in self.wanted()]
        ended = all(trial is not None and trial.status in ENDED for trial in found)
        if self._is_planned() and ended and "path" in self.record.ablation:
            return False
        self.check_space(declared(self.space))
        return True

    def _is_planned(self) -> bool:
        return self.plan == {key: self.record.ablation.get(key) for key in self.plan}

    def prepare(self) -> None:
        if not self._is_planned():
            self.append("ablation", **self.plan, alone=self._alone())
        count = self.plan["seeds"] * 2 * len(self.plan["changes"])
        self.say(f"ablation: {', '.join(self.plan['changes'])}; at most {count} trainings")

    def changed(self, changes: Sequence[str]) -> dict[str, Any]:
        """Return the book's values with some changes of the winner's made."""
        made = {n: v for n, v in self.best.items() if group(n) in changes}
        kept = {n: v for n, v in self.book.items() if group(n) not in changes}
        # what a change makes active and neither has is the winner's, else the default
        return complete(self.whole, {**self.best, **kept, **made}, {})

    def _alone(self) -> dict[str, dict[str, Any]]:
        return {change: self.changed([change]) for change in self.plan["changes"]}

    def wanted(self) -> Iterator[Wanted]:
        """Yield each change alone on the book's model, then the path in the order of gains."""
        seeds = range(self.plan["seeds"])
        alone = self._alone()
        for replicate in seeds:
            yield Wanted(self.plan["book"], self.book, replicate)
            for change, values in alone.items():
                yield Wanted(f"only {change}", values, replicate)
        order = order_of(self.record, alone, self.plan["seeds"])
        if order is None:
            return
        for replicate in seeds:
            for step in range(2, len(order) + 1):
                yield Wanted(f"with {order[step - 1]}", self.changed(order[:step]), replicate)

    def finish(self) -> None:
        if self.ending == "finished":
            alone = self._alone()
            order = order_of(self.record, alone, self.plan["seeds"]) or []
            path = [self.changed(order[:step]) for step in range(1, len(order) + 1)]
            self.append("ablation", **self.plan, alone=alone, order=order, path=path)
        self.drop_other_weights()


def order_of(
    record: Record, alone: Mapping[str, Mapping[str, Any]], seeds: int
) -> list[str] | None:
    """Return the changes by their mean score alone, best first; None while one is not trained.

    Those of which a training failed come last: the mean of the others would flatter.
    """
    sign = 1 if record.header["direction"] == "max" else -1

    def mean(trials: Sequence[Trial]) -> tuple[bool, float]:
        scores = [sign * t.result["score"] for t in trials if t.status == "finished"]
        return len(scores) == len(trials), float(np.mean(scores)) if scores else -np.inf

    trained = {change: record.retrained(values, seeds) for change, values in alone.items()}
    ended = ("finished", "failed")
    if any(
        len(trials) < seeds or any(trial.status not in ended for trial in trials)
        for trials in trained.values()
    ):
        return None
    return sorted(alone, key=lambda change: mean(trained[change]), reverse=True)
