"""Oracles: KerasTuner's own, asked and told by the loop, and replayed from the ledger.

Randomness is a function of (sweep seed, number of the ask): it is set anew before each ask, so no
random state is saved, and a resumed sweep asks the same questions. What KerasTuner 1.4.8 does
otherwise was found by running it; a comment says so where it matters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt
from keras_tuner.engine import hyperparameters as kinds

from cnn_search.definition import OracleTable
from cnn_search.errors import DefinitionError, LedgerError
from cnn_search.training import OBJECTIVES

RESERVED = "tuner/"


@dataclass(frozen=True)
class Ask:
    """What an oracle wants to be tried.

    Attributes:
        values: Hyperparameter values by name.
        epochs: The fidelity; None for the sweep's full epochs.
        parent: The trial to go on from, or None.
        oracle: The oracle's own entries, to be kept in the ledger.
    """

    values: dict[str, Any]
    epochs: int | None = None
    parent: int | None = None
    oracle: dict[str, Any] = field(default_factory=dict)


class _InMemory:
    """KerasTuner writes its state to disk after every step; our record is the ledger."""

    def save(self) -> None:
        pass

    def _save_trial(self, trial: Any) -> None:
        pass


class _Random(_InMemory, kt.RandomSearchOracle):
    pass


class _Grid(_InMemory, kt.GridSearchOracle):
    pass


class _Hyperband(_InMemory, kt.HyperbandOracle):
    pass


class _Bayesian(_InMemory, kt.BayesianOptimizationOracle):
    """Has no memory: a running trial counts as the worst so far, not by the previous fit."""

    recorded: dict[str, Any] | None = None
    ongoing_trials: dict[str, Any]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.recorded is not None:  # a replay: an ask takes seconds, and is on record
            return {"status": "RUNNING", "values": dict(self.recorded)}
        return super().populate_space(trial_id)  # type: ignore[no-any-return]

    def _vectorize_trials(self) -> Any:
        ongoing = self.ongoing_trials
        scores = [t.score for t in self.trials.values() if t.status == "COMPLETED"]
        worst = min(scores) if self.objective.direction == "max" else max(scores)
        self.ongoing_trials = {}
        for trial in ongoing.values():
            trial.status, trial.score = "COMPLETED", worst
        try:
            return super()._vectorize_trials()
        finally:
            self.ongoing_trials = ongoing
            for trial in ongoing.values():
                trial.status, trial.score = "RUNNING", None


ORACLES: dict[str, Any] = {
    "random": _Random,
    "grid": _Grid,
    "bayesian": _Bayesian,
    "hyperband": _Hyperband,
}


class Oracle:
    """Asked for the next trial and told how trials ended; final.

    Args:
        table: The definition's [oracle].
        space: Declared `keras_tuner.HyperParameters`: what may vary (see `narrow`).
        objective: A key of `training.OBJECTIVES`.
        epochs: The sweep's full epochs.
        trials: How many trials the sweep has, if it is known.
        seed: Of the sweep, at least 1 (KerasTuner takes 0 as "any").
    """

    def __init__(
        self,
        table: OracleTable,
        space: Any,
        *,
        objective: str,
        epochs: int,
        trials: int,
        seed: int,
    ) -> None:
        self.kind, self.seed = table.kind, seed
        self.idle = False
        options: dict[str, Any] = {
            "objective": keras_tuner.Objective(objective, OBJECTIVES[objective]),
            "hyperparameters": space,
            "allow_new_entries": False,
            "tune_new_entries": False,
            "seed": seed,
            # KerasTuner raises after so many, under a lock that it never frees: we count failures
            "max_consecutive_failed_trials": 10**9,
        }
        if table.kind == "hyperband":
            options |= {"max_epochs": epochs, "factor": table.factor}
            options |= {"hyperband_iterations": table.iterations}
        else:
            options["max_trials"] = None
        if table.kind == "bayesian":
            # its own default, 3 x all hyperparameters, is more than most sweeps have trials
            options["num_initial_points"] = max(5, trials // 4)
        self.keras_tuner = ORACLES[table.kind](**options)
        self.keras_tuner.verbose = 0
        self._ids: dict[int, str] = {}

    def ask(self, number: int) -> Ask | None:
        """Ask for trial `number`; None if there is none now (`idle` is set) or no more at all."""
        self._reseed(number)
        trial = self.keras_tuner.create_trial(f"slot{number}")
        self.idle = trial.status == "IDLE"
        if trial.status != "RUNNING":
            return None
        self._ids[number] = trial.trial_id
        values = _plain(trial.hyperparameters.values)
        own = {k: v for k, v in values.items() if k.startswith(RESERVED)}
        parent = own.get("tuner/trial_id")
        return Ask(
            {k: v for k, v in values.items() if not k.startswith(RESERVED)},
            own.get("tuner/epochs"),
            None if parent is None else next(n for n, i in self._ids.items() if i == parent),
            own,
        )

    def ask_again(self, number: int, values: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Replay an ask from the ledger.

        Raises:
            LedgerError: the oracle now answers otherwise, as after a change of libraries.
        """
        recorded = {**values, **own}
        if self.kind == "bayesian":
            self.keras_tuner.recorded = recorded
        ask = self.ask(number)
        if self.kind == "bayesian":
            self.keras_tuner.recorded = None
        if ask is None or {**ask.values, **ask.oracle} != recorded:
            raise LedgerError(
                f"oracle: expected the answer on record for trial {number}: {recorded}; received "
                f"{ask}. Were libraries or the space changed? Start anew with --new."
            )

    def tell(self, number: int, values: Mapping[str, Any], score: float | None) -> None:
        """Tell how a trial ended: its score, or None if it failed.

        A trial that the oracle did not ask for (a baseline, a user's own) is put in as an old one,
        if it is a point of the space; Grid does not take any.
        """
        if number not in self._ids and not self._put_in(number, values):
            return
        trial = self.keras_tuner.trials[self._ids[number]]
        if score is None:
            trial.status = "FAILED"
        else:
            self.keras_tuner.update_trial(trial.trial_id, {self.keras_tuner.objective.name: score})
            trial.status = "COMPLETED"
        self.keras_tuner.end_trial(trial)

    def starts_with(self, values: Mapping[str, Any]) -> bool:
        """Return whether `values` are what this oracle asks for first: the defaults, for Grid."""
        first = self.keras_tuner.get_space()
        defaults = {hp.name: hp.default for hp in first.space if first.is_active(hp)}
        return self.kind == "grid" and defaults == dict(values)

    def may_promote(self) -> set[int]:
        """Return the trials that Hyperband may still go on from: those of rounds not yet full."""
        if self.kind != "hyperband":
            return set()
        waiting: set[str] = set()
        for bracket in self.keras_tuner._brackets:
            for number, (past, after) in enumerate(itertools.pairwise(bracket["rounds"]), start=1):
                if len(after) < self.keras_tuner._get_size(bracket["bracket_num"], number):
                    waiting |= {entry["id"] for entry in past}
                    waiting -= {entry["past_id"] for entry in after}
        return {number for number, known in self._ids.items() if known in waiting}

    def _put_in(self, number: int, values: Mapping[str, Any]) -> bool:
        if self.kind == "grid" or outside(self.keras_tuner.hyperparameters, values):
            return False
        space = self.keras_tuner.hyperparameters.copy()
        space.values = dict(values)
        trial_id = f"{len(self.keras_tuner.trials):04d}"
        trial = keras_tuner.engine.trial.Trial(space, trial_id=trial_id, status="RUNNING")
        self.keras_tuner._record_values(trial)
        self.keras_tuner.trials[trial_id] = trial
        self.keras_tuner.start_order.append(trial_id)
        self._ids[number] = trial_id
        return True

    def _reseed(self, number: int) -> None:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0] % 2**31)
        self.keras_tuner._seed_state = seed
        if self.kind == "bayesian":
            self.keras_tuner._random_state = np.random.RandomState(seed)
            self.keras_tuner.gpr.random_state = seed


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON keeps them: the samplers return numpy numbers too."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in values.items()
    }


def outside(space: Any, values: Mapping[str, Any]) -> list[str]:
    """Return the names of those `values` that a space does not know, or does not allow."""
    filled = space.copy()
    filled.values = dict(values)
    entries = {hp.name: hp for hp in space.space if filled.is_active(hp)}
    return [n for n, v in values.items() if n not in entries or coerce(entries[n], v) is None]


def coerce(hp: Any, value: Any) -> Any:
    """Return `value` as a hyperparameter has it (0 as 0.0 among floats), or None if it cannot."""
    if isinstance(hp, kinds.Float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and hp.min_value <= value <= hp.max_value else None
    truth = isinstance(value, bool)
    same = [v for v in hp.values if isinstance(v, bool) == truth and v == value]
    return same[0] if same else None


def allowed(hp: Any) -> str:
    """Return in words what a hyperparameter can take."""
    if isinstance(hp, kinds.Float):
        return f"{hp.min_value} to {hp.max_value}"
    return ", ".join(json.dumps(value) for value in hp.values)


def narrow(space: Any, table: Mapping[str, Any], over: list[str] | None = None) -> Any:
    """Return the space with some hyperparameters fixed to a value or narrowed to a list of values.

    Args:
        space: Declared `keras_tuner.HyperParameters`.
        table: A value, or a list of values, by name.
        over: If given, everything else is fixed at its default.

    Raises:
        DefinitionError: an unknown name, or a value that the space does not have; all at once.
    """
    names = [hp.name for hp in space.space]
    problems = [
        f"{where}: no such hyperparameter; the space has {', '.join(sorted(names))}."
        for where, name in [
            *((f"[space] {name}", name) for name in table),
            *((f"[oracle] over: {name}", name) for name in over or []),
        ]
        if name not in names
    ]
    narrowed = keras_tuner.HyperParameters()
    for hp in space.space:
        fixed = [hp.default] if over is not None and hp.name not in over else None
        values = table.get(hp.name, fixed)
        if values is None:
            narrowed.merge([hp])
            continue
        values = values if isinstance(values, list) else [values]
        bad = [value for value in values if coerce(hp, value) is None]
        if bad or not values:
            problems.append(
                f"[space] {hp.name}: expected {allowed(hp)}; received {json.dumps(bad)}."
            )
            continue
        values = [coerce(hp, value) for value in values]
        narrowed.merge([_choice(hp, values)])
    if problems:
        raise DefinitionError("\n".join(problems))
    return narrowed


def complete(space: Any, baseline: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole configuration: `values` on top of a baseline's, defaults for the rest.

    Raises:
        DefinitionError: a name or value that the space does not have.
    """
    entries = {hp.name: hp for hp in space.space}
    known = {n: coerce(entries[n], v) for n, v in values.items() if n in entries}
    filled = space.copy()
    filled.values = {**baseline, **{n: v for n, v in known.items() if v is not None}}
    for hp in space.space:  # parents come first; KerasTuner's own filling-in is random
        if filled.is_active(hp):
            filled.values.setdefault(hp.name, hp.default)
    whole = {hp.name: filled.values[hp.name] for hp in space.space if filled.is_active(hp)}
    for name, value in values.items():
        if name not in entries:
            expected = f"a hyperparameter of the space ({', '.join(entries)})"
        elif known[name] is None:
            expected = allowed(entries[name])
        elif name not in whole:
            expected = f"nothing: with the other values {name} has no effect"
        else:
            continue
        raise DefinitionError(f"--try {name}={value}: expected {expected}. Correct it.")
    return whole


def _choice(hp: Any, values: list[Any]) -> Any:
    """Return `hp` narrowed to `values`, which it has."""
    if len(values) == 1:
        return kinds.Fixed(hp.name, values[0], conditions=hp.conditions)
    if isinstance(hp, kinds.Boolean):
        return hp
    default = hp.default if hp.default in values else values[0]
    return kinds.Choice(hp.name, values, default=default, conditions=hp.conditions)
