"""Optuna's samplers as KerasTuner oracles: in KerasTuner's own tuner, and how values go in."""

from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
from keras_tuner.engine import hyperparameters as kinds
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cnn_search.datasets import load
from cnn_search.samplers import REDRAWN, STARTUP, TPEOracle, param_of, suggest


class Tuner(keras_tuner.Tuner):
    """KerasTuner 1.4.8's own, without the `tensorboard` that it asks for and does not declare."""

    def _configure_tensorboard_dir(self, *args: Any, **options: Any) -> None:
        pass


def build(hp: Any) -> Any:
    """Return a small network as KerasTuner's guides define one, entry by entry."""
    layers = [keras.layers.Rescaling(1 / 16), keras.layers.Flatten()]
    for i in range(hp.Int("layers", 1, 2)):
        layers.append(keras.layers.Dense(hp.Int(f"units_{i}", 8, 32, step=8), "relu"))
    layers.append(keras.layers.Dense(10, "softmax"))
    model = keras.Sequential(layers)
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    optimiser = hp.Choice("optimiser", ["adam", "sgd"])
    model.compile(
        {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[optimiser](rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def tuner(folder: Path, trials: int, **options: Any) -> Tuner:
    oracle = TPEOracle(objective="val_accuracy", max_trials=trials, seed=2)
    return Tuner(oracle, build, directory=folder, project_name="plain", **options)


def search(tuner: Tuner) -> list[dict[str, Any]]:
    digits = load("digits")
    keras.utils.set_random_seed(1)
    tuner.search(
        digits.train.images[:200],
        digits.train.labels[:200],
        validation_data=(digits.validation.images[:100], digits.validation.labels[:100]),
        epochs=1,
        verbose=0,
    )
    oracle = tuner.oracle
    assert {trial.status for trial in oracle.trials.values()} == {"COMPLETED"}
    return [dict(oracle.trials[i].hyperparameters.values) for i in oracle.start_order]


def test_keras_tuners_own_tuner_runs_with_it_and_takes_up_its_record(tmp_path: Path) -> None:
    whole = search(tuner(tmp_path / "whole", 14))
    assert len(whole) == 14
    assert len({str(values) for values in whole}) == 14
    assert all("units_1" in values or values["layers"] == 1 for values in whole)
    first = search(tuner(tmp_path / "twice", 11))
    assert first == whole[:11]
    again = search(tuner(tmp_path / "twice", 14, overwrite=False))
    assert len(again) == 14
    assert again[:11] == whole[:11]


def told(oracle: TPEOracle, count: int, values_of: Any) -> list[dict[str, Any]]:
    asked = []
    for number in range(count):
        trial = oracle.create_trial(str(number))
        assert trial.status == "RUNNING"
        oracle.update_trial(trial.trial_id, values_of(trial.hyperparameters.values))
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        asked.append(dict(trial.hyperparameters.values))
    return asked


def space() -> Any:
    hp = keras_tuner.HyperParameters()
    hp.Float("x", 0.0, 1.0)
    with hp.conditional_scope("kind", [hp.Choice("kind", ["a", "b"])]):
        pass
    with hp.conditional_scope("kind", ["b"]):
        hp.Float("y", 0.0, 1.0)
    return hp


def oracle(objective: Any) -> TPEOracle:
    made = TPEOracle(objective=objective, hyperparameters=space(), seed=1)
    made.save = lambda: None
    made._save_trial = lambda trial: None
    made.verbose = 0
    return made


def test_it_finds_what_random_search_does_not() -> None:
    objective = keras_tuner.Objective("score", "max")

    def score(values: dict[str, Any]) -> dict[str, float]:
        return {"score": -((values["x"] - 0.3) ** 2) - (values["kind"] == "a")}

    asked = told(oracle(objective), 60, score)
    late = [abs(values["x"] - 0.3) for values in asked[40:]]
    assert np.median(late) < 0.1  # of random values, 0.3
    assert sum(values["kind"] == "b" for values in asked[40:]) > 15
    assert all(("y" in values) == (values["kind"] == "b") for values in asked)


def test_half_of_the_first_configurations_are_near_the_best_so_far() -> None:
    made = oracle(keras_tuner.Objective("score", "max"))
    for i in range(20):
        made.hyperparameters.Choice(f"n_{i}", [*range(50)])
    scores = iter([1.0] + [0.0] * STARTUP)  # the first remains the best
    best, *others = told(made, STARTUP, lambda values: {"score": next(scores)})
    shared = [sum(values.get(name) == best[name] for name in best) for values in others]
    near = [count for count in shared if count > len(best) / 2]
    assert 0 < len(near) < len(shared)
    assert min(near) == len(best) - REDRAWN


def test_several_objectives_are_not_their_sum() -> None:
    objectives = [keras_tuner.Objective("high", "max"), keras_tuner.Objective("low", "min")]

    def both(values: dict[str, Any]) -> dict[str, float]:
        return {"high": values["x"], "low": values["x"]}  # their sum is 0 everywhere

    asked = told(oracle(objectives), 40, both)
    assert {round(values["x"], 1) for values in asked} >= {0.1, 0.3, 0.5, 0.7, 0.9}


@pytest.mark.parametrize(
    ("hp", "expected", "value", "param"),
    [
        (kinds.Choice("n", [8, 32, 64]), IntDistribution(0, 2), 32, 1),
        (kinds.Choice("n", [0.0, 0.5]), IntDistribution(0, 1), 0.5, 1),
        (kinds.Choice("n", ["a", "b"]), CategoricalDistribution(["a", "b"]), "b", "b"),
        (kinds.Choice("n", [3, 1], ordered=False), CategoricalDistribution([3, 1]), 1, 1),
        (kinds.Boolean("n"), CategoricalDistribution([False, True]), True, True),
        (kinds.Int("n", 1, 5), IntDistribution(1, 5), 4, 4),
        (kinds.Int("n", 8, 32, step=8), IntDistribution(0, 3), 24, 2),
        (kinds.Int("n", 1, 64, sampling="log"), IntDistribution(1, 64, log=True), 4, 4),
        (kinds.Int("n", 2, 16, step=2, sampling="log"), IntDistribution(0, 3), 8, 2),
        (kinds.Float("n", 0.1, 1, sampling="log"), FloatDistribution(0.1, 1, log=True), 0.2, 0.2),
        (kinds.Float("n", 0, 1, step=0.25), IntDistribution(0, 4), 0.5, 2),
    ],
)
def test_values_go_in_as_what_they_are(hp: Any, expected: Any, value: Any, param: Any) -> None:
    assert param_of(hp, value) == param
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial({"n": param})
    trial = study.ask()
    assert suggest(trial, hp) == value
    assert trial.distributions == {"n": expected}


def test_what_is_fixed_is_not_suggested() -> None:
    trial = optuna.create_study().ask()
    assert suggest(trial, kinds.Fixed("n", 3)) == 3
    assert trial.distributions == {}
