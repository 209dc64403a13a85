"""Pruners: which trials are ended early, as others were better at the same epoch. Optuna's.

Works beside any oracle. A decision depends on the epochs that were reported so far and their order
alone, so that replaying a ledger comes to the same ones.
"""

from __future__ import annotations

from typing import Literal

import optuna

from cnn_search.definition import PrunerTable

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study in memory


class Pruner:
    """Told each epoch of each trial; final.

    Args:
        table: The definition's [pruner].
        direction: Of the objective, "max" or "min".
        epochs: The sweep's full epochs.
    """

    def __init__(self, table: PrunerTable, direction: Literal["max", "min"], epochs: int) -> None:
        self._trials: dict[int, optuna.Trial] = {}
        self._last: dict[int, int] = {}  # epochs reported, by number of the trial
        self._study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(),
            pruner=_make(table, epochs),
            direction="maximize" if direction == "max" else "minimize",
        )

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Return whether trial `number` is to end now, after an `epoch` counted from 1.

        An epoch that was reported before, in an earlier attempt, changes nothing.
        """
        if epoch <= self._last.get(number, 0):
            return False
        if number not in self._trials:
            self._trials[number] = self._study.ask()
        self._last[number] = epoch
        self._trials[number].report(value, epoch)
        return self._trials[number].should_prune()

    def end(self, number: int, score: float | None) -> None:
        """Tell that a trial has finished, with its score; or was ended, or failed (None)."""
        trial = self._trials.pop(number, None)
        if trial is None:
            return
        if score is None:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, score)


def _make(table: PrunerTable, epochs: int) -> optuna.pruners.BasePruner:
    first = table.first(epochs)
    if table.kind == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=table.factor
        )
    later = {"n_startup_trials": table.startup_trials, "n_warmup_steps": first}
    if table.kind == "median":
        return optuna.pruners.MedianPruner(**later)
    if table.kind == "percentile":
        return optuna.pruners.PercentilePruner(table.percentile, **later)
    return optuna.pruners.NopPruner()
