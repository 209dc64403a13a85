"""The final scoring: the best configurations and the baselines, trained anew and scored on test.

The one part of a sweep that reads the test images: after its last training, once for each model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnn_search import backend
from cnn_search.datasets import Dataset, Part
from cnn_search.definition import Definition, EngineTable, FinalTable
from cnn_search.driver import OnEvent, Outcome, Say
from cnn_search.errors import LedgerError
from cnn_search.ledger import Record, Trial, choose, pack_bits, read_record
from cnn_search.limits import violations
from cnn_search.retraining import Retrainer, Wanted
from cnn_search.spaces import declared
from cnn_search.subject import baseline_values
from cnn_search.training import SHOWN_IMAGES

# how a search ends that may be scored
SEARCHED = ("finished", "exhausted", "flat", "minutes", "epochs", "quota")
CALIBRATION_BINS = 15
TIMED_CALLS = 30


def estimate_seconds(record: Record, table: FinalTable) -> float:
    """Return what the trainings of a final scoring will take, from the epochs on record."""
    ranking = record.ranking()
    if not ranking:
        return 0.0
    epochs: int = record.definition["training"]["epochs"]
    every = [s for trial in record.trials.values() for s in trial.seconds.values()]

    def per_epoch(trials: Sequence[Trial]) -> float:
        # one that goes on from another may have trained no epoch of its own
        seconds = [s for trial in trials for s in trial.seconds.values()] or every
        return sum(seconds) / len(seconds)

    best = [trial for trial in ranking if not trial.baseline][: table.top]
    books = [trial for trial in record.trials.values() if trial.baseline]
    count = len(books) if table.baselines == ["all"] else max(1, len(table.baselines))
    one_seed = sum(per_epoch([trial]) for trial in best) + count * per_epoch(books)
    return one_seed * epochs * table.seeds


def reserve(table: FinalTable | None, minutes: float | None) -> Callable[[Record], float]:
    """Return what tells how many seconds of a sweep's minutes its scoring keeps: half at most."""
    if table is None or minutes is None:
        return lambda record: 0.0
    return lambda record: min(estimate_seconds(record, table), 30 * minutes)


def fit(
    record: Record, table: FinalTable, minutes: float | None
) -> tuple[FinalTable, float | None]:
    """Return `table` with as many seeds as the rest of a sweep's minutes allow, two at least.

    Returns:
        The table, and the minutes that are left.
    """
    if minutes is None:
        return table, None
    left = max(0.0, minutes - record.seconds / 60)
    one_seed = estimate_seconds(record, table) / table.seeds
    seeds = max(2, min(table.seeds, int(60 * left / one_seed)))
    return table.model_copy(update={"seeds": seeds}), left


def run(
    folder: Path,
    dataset: Dataset,
    mlruns: Path,
    table: FinalTable,
    *,
    minutes: float | None = None,
    engine: EngineTable | None = None,
    on_event: OnEvent = lambda record, event: None,
    say: Say = lambda line: None,
) -> Outcome:
    """Score a sweep, or go on with a scoring that was cut short.

    Args:
        folder: The sweep's folder.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        table: What to train and how often; a scoring on record that has all of it is returned as
            it is.
        minutes: Training ends after the epoch that runs then; it can go on later.
        engine: Where to train; by default as the sweep was started.
        on_event: Told each event, after it was written.
        say: Told what a user should know, a line at a time.

    Returns:
        The record; `record.scored` is empty if the scoring was cut short.

    Raises:
        CnnSearchError: there is nothing to score, the images are others, or the tracking server
            does not answer; nothing was trained.
    """
    record = read_record(folder / "ledger.jsonl")
    final = _Final(folder, record, dataset, table, minutes, engine, on_event, say)
    return final.run(mlruns)


def conclude(
    outcome: Outcome,
    sweep: Definition,
    table: FinalTable | None,
    dataset: Dataset,
    mlruns: Path,
    **told: Any,
) -> Outcome:
    """Score what a search found, if it ended so that it may be, in what its minutes leave.

    Args:
        outcome: Of the search.
        sweep: Its definition.
        table: What to train and how often; None for nothing.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        **told: `on_event` and `say`, see `run`.

    Returns:
        How the scoring ended, or the search's outcome.
    """
    record = outcome.record
    if table is None or not record.ranking() or record.end not in SEARCHED:
        return outcome
    fitting, minutes = fit(record, table, sweep.minutes)
    where: dict[str, Any] = {"minutes": minutes, "engine": sweep.engine}
    scored = run(outcome.folder, dataset, mlruns, fitting, **where, **told)
    return dataclasses.replace(scored, already=outcome.already and scored.already)


class _Final(Retrainer):
    """The final scoring of a sweep; final."""

    def __init__(
        self,
        folder: Path,
        record: Record,
        dataset: Dataset,
        table: FinalTable,
        minutes: float | None,
        engine: EngineTable | None,
        on_event: OnEvent,
        say: Say,
    ) -> None:
        super().__init__(folder, record, dataset, minutes, engine, on_event, say)
        self.table = table
        self.baselines = baseline_values(self.space, table.baselines)
        self.plan: dict[str, Any] = {}

    def begin(self) -> bool:
        """Compare the plan with the one on record."""
        self.check_images()
        self.plan = {
            "finalists": self._finalists(),
            "seeds": self.table.seeds,
            "epochs": self.definition.training.epochs,
            "test_digest": self.dataset.test_digest(),
            "test_images": len(self.dataset.test.labels),
        }
        for plan in self.record.plans:
            if plan["test_digest"] != self.plan["test_digest"]:
                raise LedgerError(
                    f"{self.folder.name}: expected the test images that it was scored on before "
                    f"(digest {plan['test_digest'][:12]}); received "
                    f"{self.plan['test_digest'][:12]}. Start a new sweep with --new."
                )
        if self.record.scored and self._is_covered():
            return False
        self.check_space(declared(self.space))
        return True

    def _is_covered(self) -> bool:
        """Return whether the last plan has all of these finalists, and as many seeds."""
        last = self.record.plans[-1]
        known = [finalist["values"] for finalist in last["finalists"]]
        same = all(finalist["values"] in known for finalist in self.plan["finalists"])
        return same and last["seeds"] >= self.plan["seeds"]

    def _is_planned(self) -> bool:
        last = self.record.plans[-1] if self.record.plans else {}
        return self.plan == {key: last.get(key) for key in self.plan}

    def _finalists(self) -> list[dict[str, Any]]:
        """Return the baselines, then the best trials that are none."""
        ranking = self.record.ranking()
        books = list(self.baselines.values())
        others = [trial for trial in ranking if trial.values not in books]
        best, rest = others[: self.table.top], others[self.table.top :]
        choice = self.record.choice(ranking)
        if choice in rest:  # whom [registry] takes is one of them, though others may be better
            best[-1] = choice
        found = [_finalist(name, values, name, ranking) for name, values in self.baselines.items()]
        return found + [_finalist(f"trial {t.number}", t.values, "", ranking) for t in best]

    def prepare(self) -> None:
        if not self._is_planned():
            self.append("plan", **self.plan)
        names = [finalist["name"] for finalist in self.plan["finalists"]]
        minutes = estimate_seconds(self.record, self.table) / 60
        self.say(
            f"final scoring: {', '.join(names)}; {self.plan['seeds']} seeds each of "
            f"{self.plan['epochs']} epochs, then once on {self.plan['test_images']:,} test images; "
            f"about {minutes:.0f} min in all"
        )

    def wanted(self) -> Iterator[Wanted]:
        """Yield one seed of each finalist, then the next seed."""
        for replicate in range(self.plan["seeds"]):
            for finalist in self.plan["finalists"]:
                yield Wanted(finalist["name"], finalist["values"], replicate)

    def finish(self) -> None:
        """Score what was trained on the test part, and say who won."""
        if self.ending != "finished":
            return
        for wanted in self.wanted():
            trial = self.find(wanted)
            if trial is not None and trial.status == "finished":
                self._test(trial, also_other_weights=wanted.finalist in self.baselines)
        winner = choose_winner(self.record)
        if winner is None:
            self.ending = "failed"
            return
        self.append("scored", **winner)
        self.drop_other_weights()

    def _test(self, trial: Trial, also_other_weights: bool) -> None:
        """Score the weights that the protocol keeps, and if asked those that it does not."""
        kept = self.setup.protocol.weights
        files: dict[str, str] = {kept: "model.keras"}
        if also_other_weights:
            other = "last" if kept == "best" else "best"
            files[other] = f"{other}.keras"
        folder = self.setup.trial_folder(trial.number)
        for weights, file in files.items():
            if weights in trial.tests:
                continue
            if not (folder / file).exists():
                if weights != kept:  # it was scored as a trial before, without them
                    continue
                raise LedgerError(
                    f"{folder / file}: expected the weights of final {trial.number}; they are "
                    "gone. Start a new sweep with --new."
                )
            model = keras.models.load_model(folder / file)
            probabilities, seconds = _predict(model, self.dataset.test.images)
            self.append(
                "test",
                final=trial.number,
                weights=weights,
                **score(probabilities, self.dataset.test.labels),
                batch_seconds=seconds,
                image_seconds=_time_one(model, self.dataset.test.images),
            )
            if weights == kept:
                save_shown(folder / "test_predictions.npz", self.dataset.test, probabilities)
            backend.clear()


def _finalist(
    name: str, values: Mapping[str, Any], baseline: str, ranking: Sequence[Trial]
) -> dict[str, Any]:
    number = next((trial.number for trial in ranking if trial.values == values), None)
    return {"name": name, "trial": number, "baseline": baseline, "values": dict(values)}


def choose_winner(record: Record) -> dict[str, Any] | None:
    """Return the winner of the last plan: the highest mean validation over its retrained seeds.

    Or a cheaper one near it, if [registry] says so. A configuration of which a seed failed wins
    only if every one has such seeds; one that breaks the constraints, as the baseline may, never.

    Returns:
        `winner`, its name; `final`, the retraining whose validation is the median (the lower one
        of two), whose weights are registered; None if nothing was trained.
    """
    plan = record.plans[-1]
    sign = 1 if record.header["direction"] == "max" else -1
    found = []
    for finalist in plan["finalists"]:
        seeds = record.retrainings(finalist["name"])
        finished = sorted(
            (trial for trial in seeds if trial.status == "finished"),
            key=lambda trial: (sign * trial.result["score"], -trial.number),
        )
        if finished and not _breaks(record, finished[0]):
            mean = float(np.mean([sign * trial.result["score"] for trial in finished]))
            loss = float(np.mean([trial.result["metrics"]["val_loss"] for trial in finished]))
            whole = len(finished) == plan["seeds"]
            median = finished[(len(finished) - 1) // 2].number
            told = {"winner": finalist["name"], "final": median}
            found.append(((whole, mean, -loss), finished[0].costs, told))
    if not found:
        return None
    found.sort(key=lambda entry: entry[0], reverse=True)
    alike = [entry for entry in found if entry[0][0] == found[0][0][0]]  # all seeds, or some
    scores = [(mean, costs) for (_, mean, _), costs, _ in alike]
    return alike[choose(scores, record.header.get("definition", {}))][2]


def _breaks(record: Record, retrained: Trial) -> bool:
    """Return whether a network breaks the constraints; its seconds were predicted in the search."""
    same = (t.costs for t in record.trials.values() if t.values == retrained.values)
    costs = retrained.costs | next((costs for costs in same if costs), {})
    limits = record.header.get("definition", {}).get("constraints", {})
    return bool(violations(costs, {name: limits[name] for name in limits if name in costs}))


def _predict(model: Any, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    """Return the probabilities `(n, classes)`, and the seconds that an image took in a batch."""
    model.predict(images[:512], batch_size=512, verbose=0)  # traces
    start = time.perf_counter()
    probabilities = model.predict(images, batch_size=512, verbose=0)
    return probabilities, (time.perf_counter() - start) / len(images)


def _time_one(model: Any, images: npt.NDArray[np.uint8]) -> float:
    """Return the median seconds that one image alone takes."""
    seconds = []
    for _ in range(TIMED_CALLS + 1):
        start = time.perf_counter()
        model.predict_on_batch(images[:1])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def score(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return what the ledger keeps of predictions `(n, classes)` of test images.

    Returns:
        `accuracy`, `loss` (cross-entropy, nats); `correct`, see `ledger.unpack_bits`; `confusion`,
        counts by true class, then predicted; `calibration`, for equal bins of the highest
        probability: images, sum of that probability, right ones.
    """
    rows = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    classes = probabilities.shape[1]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    confidence = probabilities[rows, predicted].astype(np.float64)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sums = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, confidence, correct)]
    return {
        "accuracy": float(correct.mean()),
        "loss": float(-np.log(np.maximum(probabilities[rows, labels], 1e-7)).mean()),
        "correct": pack_bits(correct),
        "confusion": confusion.tolist(),
        "calibration": [
            [int(n), round(float(c), 4), int(r)] for n, c, r in zip(*sums, strict=True)
        ],
    }


def save_shown(path: Path, test: Part, probabilities: npt.NDArray[np.float32]) -> None:
    """Write predictions of a few test images, wrong and right ones, for `draw_predictions`."""
    right = probabilities.argmax(axis=1) == test.labels
    wrong = np.flatnonzero(~right)[: SHOWN_IMAGES // 2]
    rows = np.concatenate([wrong, np.flatnonzero(right)[: SHOWN_IMAGES - len(wrong)]])
    np.savez(
        path, images=test.images[rows], labels=test.labels[rows], probabilities=probabilities[rows]
    )
