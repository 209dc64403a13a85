"""How many epochs a search needs: oracles and pruners on recorded curves, ours and the peers'.

python benchmarks/search.py CURVES.toml [--quick] [--only NAME ...] [--seeds N] [--budget EPOCHS]
    [--json FILE]

CURVES.toml defines the finite space; the .parquet beside it has its curves (benchmarks/curves.py).
Ours runs in the real loop, with an engine that reads curves instead of training. A peer runs as it
is, on the same table. What counts is the best validation accuracy of a trial that went to its end,
over the epochs spent; the tutorial's model, which ours trains first, is left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from curves import Curves

from cnn_search import backend

backend.prepare(1)
backend.load()

import keras_tuner  # noqa: E402
import optuna  # noqa: E402
from keras_tuner.engine import base_tuner  # noqa: E402
from keras_tuner.engine import hyperparameters as kinds  # noqa: E402

from cnn_search import datasets, definition, search, tracking  # noqa: E402
from cnn_search.engines import Engine  # noqa: E402
from cnn_search.spaces import narrow  # noqa: E402
from cnn_search.training import Stop, Task, make_space  # noqa: E402


class Spent:
    """What a search has spent, and the best it had then; ends it when the budget is gone."""

    def __init__(self, budget: int) -> None:
        self.budget, self.epochs, self.best = budget, 0, 0.0
        self.history: list[tuple[int, float]] = []
        self.asks: list[float] = []

    def add(self, epochs: int, score: float | None = None) -> None:
        """Take in a trial's epochs, and its score if it went to its end."""
        self.epochs += epochs
        if score is not None and score > self.best:
            self.best = score
            self.history.append((self.epochs, score))

    @property
    def over(self) -> bool:
        return self.epochs >= self.budget


class Finished(keras_tuner.errors.FatalError):  # type: ignore[misc]
    """The budget is gone; any other exception is a failed trial to KerasTuner."""


# Ours


class _Lazy:
    """A queue of events, each made when it is asked for: so a trial can be stopped in between."""

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()

    def get(self, timeout: float = 0) -> Any:
        return next(self.tasks[0])

    def put(self, event: Any) -> None:
        raise AssertionError(event)


class Reading(Engine):
    """Reads curves instead of training; one slot; final."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves, self.told = curves, {}
        self.events = _Lazy()  # type: ignore[assignment]

    def start(self) -> None:
        pass

    def slots(self) -> int:
        return 1

    def submit(self, task: Task) -> None:
        self.told.pop(task.trial, None)
        self.events.tasks.append(self._tell(task))  # type: ignore[attr-defined]

    def stop(self, when: Stop, trial: int | None = None) -> None:
        self.told[trial] = when

    def kill(self, trial: int) -> None:
        raise AssertionError("nothing runs")

    def close(self, wait: bool) -> None:
        pass

    def _tell(self, task: Task) -> Any:
        name = {"trial": task.trial, "attempt": task.attempt}
        key = self.curves.key(task.values)
        curve = self.curves.baseline if task.trial == 0 else self.curves.accuracy[key]
        yield "start", {**name, "backend": "none", "threads": 1}
        for epoch in range((task.recorded or 0) + 1, task.epochs + 1):
            value = float(curve[epoch - 1])
            metrics = {"loss": 1 - value, "val_loss": 1 - value, "val_accuracy": value}
            yield "epoch", {**name, "epoch": epoch, "metrics": metrics, "seconds": 1.0}
            if self.told.get(task.trial) or self.told.get(None):
                self.events.tasks.popleft()  # type: ignore[attr-defined]
                yield "stopped", dict(name)
        best = int(np.argmax(curve[: task.epochs]))
        counts = {"parameters": 1, "trainable_parameters": 1, "flops": 1, "model_bytes": 1}
        told = {"best_epoch": best + 1, "epochs": task.epochs, "blocks_dropped": 0, **counts}
        score = float(curve[best])
        metrics = {"val_loss": 1 - score, "val_accuracy": score}
        self.events.tasks.popleft()  # type: ignore[attr-defined]
        yield "done", {**name, "score": score, "metrics": metrics, **told}


def ours(**changes: Any) -> Callable[[Path, Curves, int, Spent], None]:
    """Return a search by our own loop, with these changes of the definition."""

    def run(file: Path, curves: Curves, seed: int, spent: Spent) -> None:
        full = curves.epochs
        limits = {"trials": 10**6, "epochs_total": spent.budget + full, "seed": seed}
        limits |= {"oracle.over": [], "keep_models": 1}
        sweep = definition.read(str(file), {**limits, **changes})
        counted = {"epochs": 0}

        def watch(record: Any, event: Any) -> None:
            if event.get("trial") == 0:
                return
            if event["kind"] == "epoch":
                counted["epochs"] += 1
                spent.add(1)
            elif event["kind"] == "done" and record.trials[event["trial"]].epochs == full:
                spent.add(0, event["score"])

        nobody = mock.Mock()
        nobody.close.return_value = nobody.deliver.return_value = ""
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
            mock.patch("cnn_search.driver.make_engine", return_value=Reading(curves)),
            mock.patch.object(tracking, "Follower", return_value=nobody),
        ):
            dataset = datasets.load("digits", train_limit=200)
            search.run(sweep, dataset, Path(folder), on_event=watch)

    return run


# KerasTuner


class Reader(base_tuner.BaseTuner):
    """KerasTuner's own tuner; its trials read a curve."""

    curves: Curves
    spent: Spent

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        if self.spent.over:
            raise Finished
        values = trial.hyperparameters.values
        full = self.curves.epochs
        epochs, before = values.get("tuner/epochs", full), values.get("tuner/initial_epoch", 0)
        curve = self.curves.accuracy[self.curves.key(values)]
        score = float(np.max(curve[:epochs]))
        self.spent.add(epochs - before, score if epochs == full else None)
        return {"val_accuracy": score}

    def load_model(self, trial: Any) -> Any:
        return None


def kerastuner(oracle: Any, **options: Any) -> Callable[[Path, Curves, int, Spent], None]:
    """Return a search by one of KerasTuner's oracles."""

    def run(file: Path, curves: Curves, seed: int, spent: Spent) -> None:
        space = space_of(file)
        made = {n: value(curves) if callable(value) else value for n, value in options.items()}
        chosen = oracle(
            objective=keras_tuner.Objective("val_accuracy", "max"),
            hyperparameters=space,
            seed=seed,
            **made,
        )
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            tuner = Reader(chosen, lambda hp: None, directory=folder, project_name="peer")
            tuner.oracle.verbose = 0
            tuner.curves, tuner.spent = curves, spent
            try:
                while not spent.over:
                    before = spent.epochs
                    tuner.search()
                    if spent.epochs == before:
                        break
            except Finished:
                pass

    return run


# Optuna


def optuna_peer(make_sampler: Any, make_pruner: Any) -> Callable[[Path, Curves, int, Spent], None]:
    """Return a search by Optuna as its users write one: every value is a choice."""

    def run(file: Path, curves: Curves, seed: int, spent: Spent) -> None:
        space = space_of(file)

        def objective(trial: optuna.Trial) -> float:
            values: dict[str, Any] = {}
            filled = keras_tuner.HyperParameters()
            for hp in space.space:
                filled.merge([hp])
                if not filled.is_active(hp):
                    continue
                fixed = isinstance(hp, kinds.Fixed)
                value = hp.value if fixed else trial.suggest_categorical(hp.name, list(hp.values))
                values[hp.name] = filled.values[hp.name] = value
            curve = curves.accuracy[curves.key(values)]
            for epoch, value in enumerate(curve, start=1):
                spent.add(1)
                trial.report(float(value), epoch)
                if epoch < len(curve) and trial.should_prune():
                    raise optuna.TrialPruned
                if spent.over:
                    study.stop()
                    raise optuna.TrialPruned
            spent.add(0, float(np.max(curve)))
            return float(np.max(curve))

        study = optuna.create_study(
            direction="maximize", sampler=make_sampler(seed), pruner=make_pruner(curves.epochs)
        )
        study.optimize(objective, n_trials=10**6)

    return run


def space_of(file: Path) -> Any:
    """Return the declared, narrowed space of a definition."""
    sweep = definition.read(str(file))
    setup = search.setup_of(sweep, Path("unused"))
    space = make_space(setup, datasets.load("digits", train_limit=200)).hyperparameters()
    over = [name for name, values in sweep.space.items() if isinstance(values, list)]
    fixed = {hp.name: hp.default for hp in space.space if hp.name not in over}
    return narrow(space, {**fixed, **sweep.space})


NO_PRUNER = optuna.pruners.NopPruner
ASHA = {"pruner.kind": "asha"}
SEARCHES: dict[str, Callable[[Path, Curves, int, Spent], None]] = {
    "KerasTuner random": kerastuner(keras_tuner.oracles.RandomSearchOracle, max_trials=10**5),
    "KerasTuner bayesian": kerastuner(
        keras_tuner.oracles.BayesianOptimizationOracle, max_trials=10**5
    ),
    "KerasTuner hyperband": kerastuner(
        keras_tuner.oracles.HyperbandOracle,
        max_epochs=lambda curves: curves.epochs,
        hyperband_iterations=10,
    ),
    "Optuna TPE": optuna_peer(
        lambda seed: optuna.samplers.TPESampler(seed=seed), lambda epochs: NO_PRUNER()
    ),
    "Optuna TPE, median": optuna_peer(
        lambda seed: optuna.samplers.TPESampler(seed=seed),
        lambda epochs: optuna.pruners.MedianPruner(),
    ),
    "Optuna TPE, halving": optuna_peer(
        lambda seed: optuna.samplers.TPESampler(seed=seed),
        lambda epochs: optuna.pruners.SuccessiveHalvingPruner(),
    ),
    "Optuna TPE, hyperband": optuna_peer(
        lambda seed: optuna.samplers.TPESampler(seed=seed),
        lambda epochs: optuna.pruners.HyperbandPruner(max_resource=epochs),
    ),
    "ours random": ours(**{"oracle.kind": "random"}),
    "ours random, asha": ours(**{"oracle.kind": "random", **ASHA}),
    "ours hyperband": ours(**{"oracle.kind": "hyperband", "oracle.iterations": 10}),
    "ours tpe": ours(**{"oracle.kind": "tpe"}),
    "ours tpe, median": ours(**{"oracle.kind": "tpe", "pruner.kind": "median"}),
    "ours tpe, asha": ours(**{"oracle.kind": "tpe", **ASHA}),
    "ours tpe, asha from 1": ours(**{"oracle.kind": "tpe", **ASHA, "pruner.first_epoch": 1}),
    "ours tpe, asha from 3": ours(**{"oracle.kind": "tpe", **ASHA, "pruner.first_epoch": 3}),
}
FEWER = {"KerasTuner bayesian": 10}  # seeds: it needs seconds an ask


def best_after(history: list[tuple[int, float]], epochs: int) -> float:
    return max((score for at, score in history if at <= epochs), default=0.0)


def epochs_to(history: list[tuple[int, float]], score: float, budget: int) -> int:
    """Return after how many epochs a score was reached; twice the budget if it never was."""
    return next((at for at, found in history if found >= score), 2 * budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("definition", type=Path)
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the budget")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SEARCHES, default=[*SEARCHES])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--budget", type=int, help="epochs [40 full trials]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = Curves(options.definition.with_suffix(".parquet"))
    budget = options.budget or 40 * curves.epochs
    seeds = 2 if options.quick else options.seeds
    budget = budget // 10 if options.quick else budget
    best = max(float(np.max(curve)) for curve in curves.accuracy.values())
    print(f"{len(curves.accuracy):,} configurations, the best {best:.4f}; {budget} epochs a search")
    print(f"{'':24} {'n':>3} {'regret':>8} {'25 %':>8} {'75 %':>8} {'s a search':>10}")
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for name in options.only:
        began, found[name] = time.perf_counter(), []
        count = min(seeds, FEWER.get(name, seeds))
        for seed in range(1, count + 1):
            spent = Spent(budget)
            SEARCHES[name](options.definition, curves, seed, spent)
            found[name].append(spent.history)
        took = (time.perf_counter() - began) / count
        regrets = [best - best_after(history, budget) for history in found[name]]
        low, high = np.quantile(regrets, [0.25, 0.75])
        line = f"{name:24} {count:3} {statistics.median(regrets):8.4f} {low:8.4f} {high:8.4f}"
        print(f"{line} {took:10.2f}", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"budget": budget, "best": best, "found": found}))


if __name__ == "__main__":
    main()
