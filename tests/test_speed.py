"""Tests of `cnn_search.speed`: what a step computes, and weights fitted to measured steps."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from cnn_search import probe
from cnn_search.datasets import load
from cnn_search.definition import read
from cnn_search.network import BlockConfig, NetworkConfig, build_network
from cnn_search.speed import Measured, Speed, fit, measure, work_of
from cnn_search.training import Protocol, Setup, make_space

TRUE = (0.002, 0.01, 0.03, 0.1, 0.05)  # seconds a unit of each part


def measured(work: tuple[float, ...], seconds: float) -> Measured:
    return Measured("made up", 1, 1, work, seconds, seconds, 0.0)


def drawn(count: int, noise: float = 0.0) -> list[Measured]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        work = (1.0, *rng.uniform(0.1, 3, 2), float(rng.random() < 0.5), rng.uniform(0, 1))
        found.append(measured(work, float(np.dot(TRUE, work) * rng.lognormal(0, noise))))
    return found


def test_the_weights_of_exact_measurements_are_found() -> None:
    speed = fit(drawn(9))
    np.testing.assert_allclose(speed.weights, TRUE, rtol=1e-6)
    assert speed.error == pytest.approx(0, abs=1e-6)


def test_the_error_is_that_of_networks_that_were_left_out() -> None:
    assert fit(drawn(200, 0.1)).error == pytest.approx(0.0675, abs=0.02)  # the median of |N(0, .1)|
    assert min(fit(drawn(9, 0.5)).weights) >= 0


def test_networks_are_measured_in_the_precision_that_is_trained_in(monkeypatch: Any) -> None:
    sweep, policies = read("digits", {"training.precision": "mixed_bfloat16"}), []

    def spy(name: str, *_: Any) -> Measured:
        policies.append(keras.config.dtype_policy().name)
        return measured((1.0,), 1.0)

    monkeypatch.setattr(probe, "measure", spy)
    try:
        probe.probe(sweep, load("digits", train_limit=300), 1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert policies == ["mixed_bfloat16"] * 2


def test_one_network_is_too_few() -> None:
    with pytest.raises(ValueError, match="expected two measured networks at least; received 1"):
        fit(drawn(1))


def test_the_work_of_a_step_counts_what_its_layers_compute() -> None:
    network = NetworkConfig((BlockConfig(4, pooling="max"),))
    model = build_network(network, (8, 8, 1), 10)
    maps = 64 + 64 + 4 * 64 + 4 * 64 + 4 * 16 + 64 + 10  # input, rescale, conv, relu, pool, flatten
    flops = 2 * (64 * 9 * 4 + 64 * 10)
    parameters = 9 * 4 + 4 + 64 * 10 + 10
    expected = (1, 50 * flops / 1e9, 50 * maps / 1e7, 0, parameters / 1e7)
    assert work_of(model, (50, False)) == pytest.approx(expected)
    assert work_of(model, (50, True))[3] == 50 / 1e3


def test_an_epoch_is_its_steps_and_a_third_of_them_for_the_images_of_validation() -> None:
    data = load("digits", train_limit=300)
    network = NetworkConfig((BlockConfig(4),))
    model = build_network(network, (8, 8, 1), 10)
    steps = (len(data.train.labels) + len(data.validation.labels) / 3) / 20
    speed = Speed((0.25, 0.0, 0.0, 0.0, 0.0), 0.1)
    assert speed.epoch_seconds(model, (20, False), data) == pytest.approx(0.25 * steps)


def test_a_network_is_measured_on_fewer_images_than_a_batch_too(tmp_path: Path) -> None:
    data = load("digits", train_limit=60)
    space: Any = make_space(Setup("digits", Protocol(2), tmp_path), data)
    found = measure("few", space, {"filters_1": 8, "batch_size": 64}, data)
    assert 0 < found.step_seconds < found.epoch_seconds


def test_real_networks_are_measured_and_predicted(tmp_path: Path) -> None:
    data = load("digits", train_limit=400)
    space: Any = make_space(Setup("digits", Protocol(2), tmp_path), data)
    found = [
        measure(str(count), space, {"filters_1": count, "batch_size": 16}, data)
        for count in (8, 32, 128)
    ]
    assert [one.name for one in found] == ["8", "32", "128"]
    assert [one.flops for one in found] == sorted(one.flops for one in found)
    for one in found:
        assert 0 < one.step_seconds < one.epoch_seconds
        assert one.begin_seconds > 0
    speed = fit(found)
    hp = space.hyperparameters({"filters_1": 64, "batch_size": 16})
    assert speed.epoch_seconds(space.build(hp), space.step_of(hp), data) > 0
