"""Importance: which hyperparameters mattered in a sweep, by Optuna's PED-ANOVA, and how surely."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from cnn_search.ledger import Record, Trial

FEWEST_TRIALS = 20  # below, nothing is computed
FEWEST_TOP = 5  # "at least 5 trials above target_quantile": Optuna's advice for PED-ANOVA
TOP_QUANTILE = 0.1
MOST_LEVELS = 12  # numbers that took more values than these are a range
RESAMPLES = (40, 20)  # of up to, and of more than 1,000 trials: seconds, not minutes

Direction = Literal["minimize", "maximize"]

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study in memory


def full_trials(record: Record) -> list[Trial]:
    """Return the finished trials of full fidelity, by number."""
    full = record.definition["training"]["epochs"]
    return [t for t in record.trials.values() if t.status == "finished" and t.epochs == full]


def plain_value(value: Any) -> Any:
    """Return a hyperparameter's value as Optuna takes it: a list or a table becomes a text."""
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def distributions(trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    """Return what varied, by name: a range of what was tried, or the choices in order."""
    seen: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.values.items():
            seen.setdefault(name, []).append(plain_value(value))
    found = {name: _distribution(values) for name, values in seen.items()}
    return {name: found[name] for name in sorted(found) if not found[name].single()}


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    levels = list(dict.fromkeys(values))
    if is_number(values) and any(isinstance(v, float) for v in levels):
        low, high = min(levels), max(levels)
        if len(levels) > MOST_LEVELS:
            return FloatDistribution(low, high, log=low > 0 and high >= 10 * low)
    if is_number(values):
        levels.sort()
    else:
        levels.sort(key=lambda v: (type(v).__name__, str(v)))
    return CategoricalDistribution(levels)


def is_number(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers, and none of them a truth value."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def freeze(
    trials: Sequence[Trial],
    values: Callable[[Trial], Sequence[float]],
    label: Callable[[str], str] = str,
    *,
    params: bool = True,
) -> list[FrozenTrial]:
    """Return trials as Optuna has them; they share their distributions, which saves comparing them.

    Args:
        trials: That finished.
        values: Gives the objectives of a trial.
        label: Applied to names and texts, for a figure that takes them for markup.
        params: Whether they carry their hyperparameters.
    """
    shared: dict[str, BaseDistribution] = {}
    for name, found in (distributions(trials) if params else {}).items():
        if isinstance(found, CategoricalDistribution):
            found = CategoricalDistribution([_labelled(c, label) for c in found.choices])
        shared[name] = found
    frozen = []
    for trial in trials:
        own = {k: _labelled(plain_value(v), label) for k, v in trial.values.items() if k in shared}
        frozen.append(
            FrozenTrial(
                number=trial.number,
                trial_id=trial.number,
                state=TrialState.COMPLETE,
                value=None,
                values=[float(v) for v in values(trial)],
                datetime_start=None,
                datetime_complete=None,
                params={label(k): v for k, v in own.items()},
                distributions={label(k): shared[k] for k in own},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
        )
    return frozen


def _labelled(value: Any, label: Callable[[str], str]) -> Any:
    return label(value) if isinstance(value, str) else value


class Drawn(optuna.Study):
    """A study in memory whose trials are given, and may be the same one twice; final.

    Args:
        trials: What `get_trials` returns.
        directions: "minimize" or "maximize" of each objective.
    """

    def __init__(self, trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> None:
        storage = optuna.storages.InMemoryStorage()
        empty = optuna.create_study(storage=storage, directions=list(directions))
        super().__init__(empty.study_name, storage)
        self._drawn = list(trials)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return self._drawn


def _ordered(frozen: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials in which a choice is its place in order; texts are in that of the alphabet.

    PED-ANOVA in Optuna 5.0 flattens choices: where all of the best share one of four values, it
    takes each of the other three to be a third as frequent still, and chance often looks as
    important. Of places it does not, and smooths over neighbours only where several values do well.
    """
    places: dict[str, tuple[IntDistribution, dict[Any, int]]] = {}
    for name, found in {k: d for t in frozen for k, d in t.distributions.items()}.items():
        if isinstance(found, CategoricalDistribution):
            order = {choice: place for place, choice in enumerate(found.choices)}
            places[name] = IntDistribution(0, len(found.choices) - 1), order
    for trial in frozen:
        for name in places.keys() & trial.params.keys():
            distribution, order = places[name]
            trial.params[name] = order[trial.params[name]]
            trial.distributions[name] = distribution
    return list(frozen)


def direction_of(maximise: bool) -> Direction:
    """Return a direction as Optuna calls it."""
    return "maximize" if maximise else "minimize"


def importance(record: Record) -> dict[str, Any]:
    """Return how much each hyperparameter had to do with being among the best trials.

    PED-ANOVA (Watanabe et al. 2023, arxiv.org/abs/2304.10255) compares the values of the best share
    of the trials with those of all. Its noise is measured twice: by drawing the trials anew, with
    replacement (the interval), and by shuffling the scores (what chance alone gives).

    Returns:
        `trials`, how many it rests on; `note`, why there is none; `top`, how many were the best;
        `resamples`; `rows`, the most important first: `name`, `share` of the sum, `low`, `high` (95
        %), `chance` (what it stays below in 95 % of the shuffles, together with all others),
        `above` (whether the share is higher), `trials` that had it.
    """
    trials = full_trials(record)
    n = len(trials)
    found: dict[str, Any] = {"trials": n, "note": "", "top": 0, "resamples": 0, "rows": []}
    if n < FEWEST_TRIALS:
        found["note"] = (
            f"{n} finished trials of full length are too few to tell which hyperparameters "
            f"mattered; from {FEWEST_TRIALS} on it is computed."
        )
        return found
    sign = -1 if record.header["direction"] == "max" else 1
    loss = np.array([sign * trial.result["score"] for trial in trials])
    frozen = _ordered(freeze(trials, lambda trial: [trial.result["score"]]))
    quantile = max(TOP_QUANTILE, FEWEST_TOP / n)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    point = _evaluate(evaluator, frozen, trials, loss)
    total = sum(point.values())
    if not total:
        found["note"] = "All trials have the same score: there is nothing to explain."
        return found
    resamples = RESAMPLES[n > 1000]
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {name: [] for name in point}
    # the scores as they are count as one of the shuffles: then the bound keeps its 5 % exactly
    chance = {name: [raw / total] for name, raw in point.items()}
    for _ in range(resamples):
        drawn = [frozen[i] for i in rng.integers(0, n, n)]
        again = _evaluate(evaluator, drawn, trials, loss)
        whole = sum(again.values())
        for name in point:
            shares[name].append(again.get(name, 0.0) / whole if whole else 0.0)
        shuffled = _evaluate(evaluator, frozen, trials, rng.permutation(loss))
        for name in point:
            chance[name].append(shuffled[name] / total)
    bounds = _highest_of_all(chance)
    for name, raw in point.items():
        share, spread = raw / total, 1.96 * float(np.std(shares[name], ddof=1))
        found["rows"].append(
            {
                "name": name,
                "share": share,
                "low": max(0.0, share - spread),
                "high": min(1.0, share + spread),
                "chance": bounds[name],
                "above": share > bounds[name],
                "trials": sum(name in trial.params for trial in frozen),
            }
        )
    cut = np.sort(loss)[math.ceil(quantile * n) - 1]
    found["top"] = int(np.sum(loss <= cut))  # all that are as good as the last of them
    found["resamples"] = resamples
    return found


def _highest_of_all(chance: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return a bound for each hyperparameter; in 95 % of the shuffles none is above its own.

    Those with many values vary more by chance: each is measured in its own spread, which the scores
    as they are, one among many, hardly widen.
    """
    values = np.array(list(chance.values()))  # (hyperparameters, shuffles)
    middle, upper = np.quantile(values, [0.5, 0.9], axis=1)
    spread = upper - middle
    apart = (values - middle[:, None]) / np.where(spread > 0, spread, 1)[:, None]
    most = float(np.quantile(apart.max(axis=0), 0.95, method="higher"))
    return dict(zip(chance, (middle + most * spread).tolist(), strict=True))


def _evaluate(
    evaluator: PedAnovaImportanceEvaluator,
    drawn: Sequence[FrozenTrial],
    trials: Sequence[Trial],
    loss: np.ndarray[Any, np.dtype[np.float64]],
) -> Mapping[str, float]:
    """Return importances, not normalised; `loss` is by the place of a trial in `trials`."""
    by_number = {trial.number: float(value) for trial, value in zip(trials, loss, strict=True)}
    with warnings.catch_warnings():
        # of the target, which is ours; of `normalize`, an experiment; of rare values
        warnings.simplefilter("ignore")
        return get_param_importances(
            Drawn(drawn, ["minimize"]),
            evaluator=evaluator,
            target=lambda trial: by_number[trial.number],
            normalize=False,
        )
