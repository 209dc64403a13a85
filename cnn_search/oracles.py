"""Oracles: KerasTuner's and Optuna's, asked and told by the loop, and replayed from the ledger.

Randomness is a function of (sweep seed, number of the ask): it is set anew before each ask, so no
random state is saved, and a resumed sweep asks the same questions. What KerasTuner 1.4.8 does
otherwise was found by running it; a comment says so where it matters.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt

from cnn_search import samplers
from cnn_search.definition import OracleTable
from cnn_search.errors import DefinitionError, LedgerError
from cnn_search.limits import Cost, Limit
from cnn_search.spaces import outside
from cnn_search.training import OBJECTIVES

RESERVED = "tuner/"
COLLISIONS = 1000  # points drawn that were tried before, until a space is exhausted


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
    """Does not wait for a trial to end before the next: the space is declared whole beforehand."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        found: dict[str, Any] = super().populate_space(trial_id)
        if found["status"] == "RUNNING":
            self._populate_next.append(trial_id)
        return found


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


class _Sampled(_InMemory, samplers.OptunaOracle):
    """Takes its answers from the record at a replay: what a sampler says depends on its version."""

    recorded: dict[str, Any] | None = None

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.recorded is None:
            return super().populate_space(trial_id)
        self._tried_so_far.add(self._compute_values_hash(self.recorded))
        return {"status": "RUNNING", "values": dict(self.recorded)}


class _TPE(_Sampled, samplers.TPEOracle):
    pass


class _GP(_Sampled, samplers.GPOracle):
    pass


ORACLES: dict[str, Any] = {
    "random": _Random,
    "grid": _Grid,
    "bayesian": _Bayesian,
    "hyperband": _Hyperband,
    "tpe": _TPE,
    "gp": _GP,
}
REMEMBERED = ("bayesian", "tpe", "gp")  # not asked again at a replay


class Oracle:
    """Asked for the next trial and told how trials ended; final.

    Args:
        table: The definition's [oracle].
        space: Declared `keras_tuner.HyperParameters`: what may vary (see `narrow`).
        objective: A key of `training.OBJECTIVES`.
        costs: Objectives beside it, minimised: for Optuna's samplers only.
        epochs: The sweep's full epochs.
        trials: How many trials the sweep has, if it is known.
        seed: Of the sweep, at least 1 (KerasTuner takes 0 as "any").

    Raises:
        DefinitionError: what the oracle needs is not installed.
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
        costs: Sequence[Cost] = (),
    ) -> None:
        if table.kind == "gp" and importlib.util.find_spec("torch") is None:
            raise DefinitionError(
                "oracle: gp needs torch, which is not installed. Install it "
                "(pip install 'cnn-search[gp]'), or pass --oracle tpe."
            )
        self.kind, self.seed, self.objective = table.kind, seed, objective
        self.costs = tuple(costs)
        self.idle = False
        objectives = [keras_tuner.Objective(objective, OBJECTIVES[objective])]
        objectives += [keras_tuner.Objective(cost, "min") for cost in costs]
        options: dict[str, Any] = {
            "objective": objectives if costs else objectives[0],
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
        # its 20 leave one of eight points out every twelfth time
        self.keras_tuner._max_collisions = COLLISIONS
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
        if self.kind in REMEMBERED:
            self.keras_tuner.recorded = recorded
        ask = self.ask(number)
        if self.kind in REMEMBERED:
            self.keras_tuner.recorded = None
        if ask is None or {**ask.values, **ask.oracle} != recorded:
            raise LedgerError(
                f"oracle: expected the answer on record for trial {number}: {recorded}; received "
                f"{ask}. Were libraries or the space changed? Start anew with --new."
            )

    def tell(
        self,
        number: int,
        values: Mapping[str, Any],
        score: float | None,
        *,
        curve: Mapping[int, float] | None = None,
        costs: Mapping[Limit, float] | None = None,
        violation: float = 0.0,
    ) -> None:
        """Tell how a trial ended: its score, or None if it failed.

        A trial that the oracle did not ask for (a baseline, a user's own) is put in as an old one,
        if it is a point of the space; Grid does not take any.

        Args:
            number: Of the trial.
            values: Of the trial, by name.
            score: None if it has none.
            curve: Of a trial that was pruned: the objective after each epoch, and no score.
                Optuna's samplers learn from it as such; to the others the last one is its score.
            costs: Of its network.
            violation: How far its network is from being allowed, above 0 if it is not. Only
                Optuna's samplers learn it; to the others a trial that was refused has failed.
        """
        if number not in self._ids and not self._put_in(number, values):
            return
        oracle, trial_id = self.keras_tuner, self._ids[number]
        curve = {0: score} if score is not None else curve or {}
        if isinstance(oracle, samplers.OptunaOracle):
            if score is None and (curve or violation):
                oracle.pruned.add(trial_id)
            if violation:
                oracle.violations[trial_id] = violation
        elif curve:
            curve = {0: curve[max(curve)]}
        known: dict[str, float] = {}
        if costs and curve:
            known = {name: costs[name] for name in self.costs}
        for epoch, value in curve.items():
            oracle.update_trial(trial_id, {self.objective: value, **known}, step=epoch)
        trial = oracle.trials[trial_id]
        trial.status = "COMPLETED" if curve else "FAILED"
        oracle.end_trial(trial)
        if violation and self.kind == "hyperband":  # another one takes its place in the round
            for bracket in oracle._brackets:
                first = bracket["rounds"][0]
                first[:] = [entry for entry in first if entry["id"] != trial_id]

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
