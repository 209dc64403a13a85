"""Recorded: a trial as MLflow has it, with all that it takes to train it again.

The sweep's folder and ledger may be gone: parameters, tags and metrics of the runs are enough.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnn_search.definition import Definition
from cnn_search.errors import TrackingError
from cnn_search.store import Store, find_runs, open_store, read_curve, read_run

Curve = dict[int, dict[str, float]]
TEXTS = ("name", "data", "search_space", "data_dir", "objective")  # whatever they look like
LONGEST = 1000  # characters of a failure's message that are compared and shown


@dataclass(frozen=True)
class Recorded:
    """A trial, or a retraining of the final scoring, as MLflow has it.

    Attributes:
        title: What it is called, with its sweep.
        run: The id of its last attempt's run.
        definition: Of its sweep, as far as a training needs it.
        tags: Of its sweep's run (versions, machine, code, images) and of its last attempt's.
        hyperparameters: Values by name, as MLflow keeps them: texts.
        seed, epochs: See `training.Task`; of one that did not end, the epochs that it had.
        threads: Of all its attempts.
        curve: The metrics of each epoch, by its number from 1: of every attempt, and of the trial
            that it was promoted from.
        score: Of the weights that it kept; None if it did not finish.
        failure: Reason and message; empty if it did not fail.
        others: The scores of the retrainings of the same configuration with other seeds.
    """

    title: str
    run: str
    definition: Definition
    tags: Mapping[str, str]
    hyperparameters: Mapping[str, str]
    seed: int
    epochs: int
    threads: frozenset[int]
    curve: Curve
    score: float | None
    failure: tuple[str, ...]
    others: Sequence[float]

    @property
    def missing(self) -> list[int]:
        """The epochs before the last one on record that are not."""
        return [epoch for epoch in range(1, max(self.curve, default=0)) if epoch not in self.curve]


class _Trials:
    """The runs of one sweep, by trial; final."""

    def __init__(self, store: Store, experiment: str, sweep: str) -> None:
        self.store, self.sweep = store, sweep
        self.runs = list(find_runs(store, experiment, "cnn_search.sweep", sweep))

    def parent(self) -> Any:
        """Return the sweep's own run."""
        for run in self.runs:
            if run.data.tags.get("cnn_search.kind") == "sweep":
                return run
        raise TrackingError(
            f"{self.sweep}: expected the sweep's own run, which says on which images it trained; "
            "it was deleted. Restore it in MLflow's UI."
        )

    def attempts(self, which: str, number: int) -> list[Any]:
        """Return the runs of a trial ("trial") or a retraining ("final"), the first one first."""
        key = f"cnn_search.{which}"
        found = [run for run in self.runs if run.data.tags.get(key) == str(number)]
        return sorted(found, key=lambda run: int(run.data.tags["cnn_search.attempt"]))

    def chain(self, which: str, number: int) -> list[Any]:
        """Return the attempts at a trial, after those at the trials that it was promoted from.

        Each goes on from the last state of the one before; with the same seed and values this is
        one continuous training, since a schedule spans the sweep's full epochs in all of them.
        """
        attempts = self.attempts(which, number)
        if not attempts:
            tags = [run.data.tags.get(f"cnn_search.{which}") for run in self.runs]
            there = ", ".join(map(str, sorted({int(tag) for tag in tags if tag is not None})))
            raise TrackingError(
                f"{self.sweep}: expected --{which} to be one of {there or 'none'}; received "
                f"{number}. Correct it; or restore the run, if it was deleted."
            )
        parent = attempts[-1].data.tags.get("promoted_from")
        if parent is None or not self.attempts("trial", int(parent)):
            return attempts
        before = self.chain("trial", int(parent))
        if _without_epochs(before[-1]) != _without_epochs(attempts[-1]):
            raise TrackingError(
                f"trial {number} of {self.sweep}: expected the seed and values of trial {parent}, "
                "which it goes on from; they differ, so the two are not one training. It cannot be "
                "replayed."
            )
        return before + attempts

    def curve(self, chain: Sequence[Any]) -> Curve:
        """Return the epochs of all these runs; where two have the same one, the later holds."""
        curve: Curve = {}
        for run in chain:
            points = read_curve(self.store, run)
            # the test part is scored at a step of its own
            curve |= {step: point for step, point in points.items() if "epoch_seconds" in point}
        return curve

    def scores_of_others(self, run: Any, objective: str) -> list[float]:
        """Return the scores of the retrainings of a run's configuration with other seeds."""
        found = {
            other.data.params["seed"]: other.data.metrics[f"best_{objective}"]
            for other in self.runs
            if "cnn_search.final" in other.data.tags
            and other.info.status == "FINISHED"
            and {**other.data.params, "seed": ""} == {**run.data.params, "seed": ""}
        }
        return [score for seed, score in found.items() if seed != run.data.params["seed"]]


def find(mlruns: Path, name: str, trial: int | None = None, final: int | None = None) -> Recorded:
    """Return a trial as MLflow has it; nothing but MLflow is read.

    Args:
        mlruns: The folder of MLflow's own store.
        name: The id of a run, of any of the trial's attempts; or, with one of the two below, a
            sweep's: the newest of this name, or the very one with its date.
        trial: The number of a trial of the search.
        final: The number of a retraining of the final scoring.

    Raises:
        TrackingError: there is no such trial, it has no epochs, or what is needed was deleted.
    """
    stem = re.sub(r"-\d{8}-\d{6}$", "", name)
    store = open_store(mlruns, stem)
    if trial is None and final is None:
        experiment, sweep, which, number = _of_run(store, name)
    else:
        which, number = ("trial", trial or 0) if final is None else ("final", final)
        experiment, sweep = _newest(store, name, stem)
    trials = _Trials(store, experiment, sweep)
    parent, chain = trials.parent(), trials.chain(which, number)
    last, curve = chain[-1], trials.curve(chain)
    tags, status = last.data.tags, last.info.status
    title = f"{which} {number}" + (f" ({tags['finalist']})" if "finalist" in tags else "")
    title += f" of {sweep}"
    if not curve and status != "FAILED":
        raise TrackingError(
            f"{title}: expected an epoch on record, to compare with; there is none."
        )
    definition = _definition(title, parent.data.params)
    params = dict(last.data.params)
    if "seed" not in params:
        raise TrackingError(
            f"{title}: expected its parameters in MLflow; they never arrived there."
        )
    seed, epochs = int(params.pop("seed")), int(params.pop("epochs"))
    score = last.data.metrics.get(f"best_{definition.objective}") if status == "FINISHED" else None
    failed = status == "FAILED"
    return Recorded(
        title,
        last.info.run_id,
        definition,
        {**parent.data.tags, **tags},
        params,
        seed,
        epochs if status in ("FINISHED", "FAILED") else max(curve),
        frozenset(int(run.data.tags["threads"]) for run in chain),
        curve,
        score,
        (tags.get("failure", ""), tags.get("failure_message", "")[:LONGEST]) if failed else (),
        trials.scores_of_others(last, definition.objective),
    )


def _of_run(store: Store, run_id: str) -> tuple[str, str, str, int]:
    """Return experiment, sweep, "trial" or "final", and number of a run's trial."""
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise TrackingError(
            "replay: expected the id of a trial's run, 32 hexadecimal digits, or a sweep's name "
            f"with --trial K or --final K; received {run_id!r}."
        )
    run = read_run(store, run_id)
    for which in ("trial", "final"):
        if (number := run.data.tags.get(f"cnn_search.{which}")) is not None:
            return run.info.experiment_id, run.data.tags["cnn_search.sweep"], which, int(number)
    raise TrackingError(
        f"replay: expected the run of a trial; {run_id} ({run.info.run_name}) is none. Pass a "
        "trial's run, or a sweep's name with --trial K."
    )


def _newest(store: Store, name: str, stem: str) -> tuple[str, str]:
    """Return the experiment and the newest sweep of a name."""
    experiment = store.experiment_id(store.client())
    sweeps = [
        run.data.tags["cnn_search.sweep"]
        for run in (find_runs(store, experiment, "cnn_search.kind", "sweep") if experiment else ())
    ]
    found = [s for s in sweeps if name == s or (name == stem and s.rsplit("-", 2)[0] == name)]
    if experiment is None or not found:
        raise TrackingError(
            f"replay: expected a sweep that {store.address} has; there is none called {name!r}. "
            "Correct the name, or pass --mlruns."
        )
    return experiment, max(found)


def _without_epochs(run: Any) -> dict[str, str]:
    return {name: value for name, value in run.data.params.items() if name != "epochs"}


def literal(text: str) -> Any:
    """Return the number, truth value or list that `str` made a text of; else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _definition(title: str, params: Mapping[str, str]) -> Definition:
    told: dict[str, Any] = {key: params[key] for key in TEXTS if key in params}
    told |= {k: literal(params[k]) for k in ("train_limit", "image_size") if k in params}
    told["training"] = {
        key.removeprefix("training."): literal(value)
        for key, value in params.items()
        if key.startswith("training.")
    }
    try:
        return Definition.model_validate_json(json.dumps(told))
    except ValidationError as error:
        problem = error.errors()[0]
        raise TrackingError(
            f"{title}: expected the definition in the parameters of its sweep's run; "
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}. It cannot be replayed."
        ) from None
