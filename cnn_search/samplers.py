"""Samplers: Optuna's, as oracles of KerasTuner; in our loop, and in plain `keras_tuner.Tuner`.

Each ask gets a sampler of its own, seeded anew, and all that a sampler knows is the trials: one
that was read back from a record teaches it the same as one that ran here. Only hyperparameters that
are active are suggested; choices that have an order go in as their place in it.
"""

from __future__ import annotations

import abc
import random
import warnings
from collections.abc import Sequence
from typing import Any

import keras_tuner
import optuna
from keras_tuner.engine import hyperparameters as kinds
from optuna.trial import TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study in memory
DRAFTS = 5  # of one ask, until one is new
# finished or refused trials before a sampler is asked; Optuna counts pruned ones too, whose ranks
# mislead it (docs/search.md)
STARTUP = 10
# until then configurations are drawn at random; of these a share around the best trial so far, all
# but so many of whose parameters they keep
NEAR, REDRAWN = 0.5, 3


class OptunaOracle(keras_tuner.Oracle, abc.ABC):
    """A KerasTuner oracle whose configurations an Optuna sampler chooses; abstract.

    Takes what `keras_tuner.Oracle` takes. Several objectives are searched for as such, not as their
    sum.

    Attributes:
        pruned: Ids of trials that were ended early: their metrics are of the epochs they had.
        violations: By id, how far a trial is from being allowed; of those that are not.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pruned: set[str] = set()
        self.violations: dict[str, float] = {}
        self._open: dict[str, optuna.Trial] = {}
        self._told: set[str] = set()
        self._study: optuna.Study | None = None

    @abc.abstractmethod
    def make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return a sampler that has seen nothing yet."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        study = self._catch_up()
        taught = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
        taught += len(self.violations.keys() & self.pruned)  # those that were refused
        for _ in range(DRAFTS):
            self._seed_state += 1
            study.sampler = self._sampler(self._seed_state, taught)
            if taught < STARTUP:
                study.enqueue_trial(self._near(study, random.Random(self._seed_state)))
            # tried out in a trial that counts as failed, which samplers pass over
            draft = study.ask()
            values = self._values(draft)
            study.tell(draft, state=TrialState.FAIL)
            key = self._compute_values_hash(values)
            if key not in self._tried_so_far:
                self._tried_so_far.add(key)
                return {"status": "RUNNING", "values": values}
        # the sampler comes back to what it knows: any other point, if there is one
        found = self._random_values()
        return {"status": "STOPPED" if found is None else "RUNNING", "values": found}

    def score_trial(self, trial: Any) -> None:
        several = getattr(self.objective, "objectives", None)
        if several is None or trial.metrics.exists(self.objective.name):
            super().score_trial(trial)
            return
        found = {one.name: trial.metrics.get_best_value(one.name) for one in several}
        trial.score, trial.best_step = self.objective.get_value(found), 0

    def _sampler(self, seed: int, taught: int) -> optuna.samplers.BaseSampler:
        if taught < STARTUP:
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():  # of options that are new: the versions are pinned
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.make_sampler(seed)

    def _near(self, study: optuna.Study, chance: random.Random) -> dict[str, Any]:
        """Return what a configuration keeps of the best one so far; nothing as often."""
        best = study.best_trials  # of those that are allowed; of several objectives, the front
        if not best or chance.random() >= NEAR:
            return {}
        params = chance.choice(best).params
        redrawn = chance.sample(list(params), min(REDRAWN, len(params)))
        return {name: value for name, value in params.items() if name not in redrawn}

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        hps = keras_tuner.HyperParameters()
        for hp in self.hyperparameters.space:  # parents come first
            hps.merge([hp])
            if hps.is_active(hp):
                hps.values[hp.name] = suggest(trial, hp)
        return dict(hps.values)

    def _catch_up(self) -> optuna.Study:
        """Tell the study what it does not know yet, in the order in which it happened."""
        several = getattr(self.objective, "objectives", [self.objective])
        if self._study is None:
            self._study = optuna.create_study(
                directions=["maximize" if o.direction == "max" else "minimize" for o in several]
            )
        self._study.sampler = optuna.samplers.RandomSampler(0)  # what it would say is not asked
        for trial_id in self.start_order:
            if trial_id not in self._open and trial_id not in self._told:
                self._begin(trial_id)
        for trial_id in self.end_order:
            if trial_id not in self._told:
                self._end(trial_id, [objective.name for objective in several])
        return self._study

    def _begin(self, trial_id: str) -> None:
        """Put a trial in, with the values that it has."""
        assert self._study is not None
        values = self.trials[trial_id].hyperparameters.values
        own = [hp for hp in self.hyperparameters.space if not isinstance(hp, kinds.Fixed)]
        self._study.enqueue_trial(
            {h.name: param_of(h, values[h.name]) for h in own if h.name in values}
        )
        trial = self._open[trial_id] = self._study.ask()
        self._values(trial)

    def _end(self, trial_id: str, names: Sequence[str]) -> None:
        assert self._study is not None
        ended, trial = self.trials[trial_id], self._open.pop(trial_id)
        self._told.add(trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.set_constraint("limits", self.violations.get(trial_id, 0.0))
        if trial_id in self.pruned:
            if len(names) == 1 and ended.metrics.exists(names[0]):  # a refused one had no epoch
                for observation in ended.metrics.get_history(names[0]):
                    trial.report(observation.mean(), observation.step)
            self._study.tell(trial, state=TrialState.PRUNED)
        elif ended.status != "COMPLETED":
            self._study.tell(trial, state=TrialState.FAIL)
        elif len(names) == 1:
            self._study.tell(trial, ended.score)
        else:
            self._study.tell(trial, [ended.metrics.get_best_value(name) for name in names])


class TPEOracle(OptunaOracle):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127)."""

    def make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=1,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


class GPOracle(OptunaOracle):
    """Gaussian process; needs torch. What is not in every trial is drawn at random."""

    def make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)


def suggest(trial: optuna.Trial, hp: Any) -> Any:
    """Return a value of a hyperparameter, as a trial's sampler chooses it."""
    if isinstance(hp, kinds.Fixed):
        return hp.value
    levels = _levels(hp)
    if levels is None:
        choose = trial.suggest_int if isinstance(hp, kinds.Int) else trial.suggest_float
        return choose(hp.name, hp.min_value, hp.max_value, log=hp.sampling == "log")
    if _is_ordered(hp):
        return levels[trial.suggest_int(hp.name, 0, len(levels) - 1)]
    return trial.suggest_categorical(hp.name, levels)


def param_of(hp: Any, value: Any) -> Any:
    """Return a value of a hyperparameter as it goes into Optuna: its place, if it has one."""
    levels = _levels(hp)
    if levels is None or not _is_ordered(hp):
        return value
    # a float with steps has them as KerasTuner computes them, .3 as .30000000000000004
    return min(range(len(levels)), key=lambda i: abs(levels[i] - value))


def _levels(hp: Any) -> list[Any] | None:
    """Return all values of a hyperparameter in order, or None if it is a range."""
    if isinstance(hp, kinds.Boolean):
        return [False, True]
    whole = isinstance(hp, kinds.Int) and hp.step == 1
    if isinstance(hp, kinds.Choice) or (hp.step is not None and not whole):
        return list(hp.values)
    return None


def _is_ordered(hp: Any) -> bool:
    return not isinstance(hp, kinds.Boolean) and getattr(hp, "ordered", True)
