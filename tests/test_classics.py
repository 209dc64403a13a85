"""Tests of the classics: their known parameter counts, small images, their space and sweep."""

import json
from typing import Any

import keras
import pytest

from cnn_search.definition import read
from cnn_search.network import build_network, count_flops, fitting_blocks
from cnn_search.spaces import declared
from cnn_search.training import Protocol, as_json, find_space
from search_spaces.classics import ALEXNET, GOOGLENET, NETWORKS, VGG16, scaled


def made(side: int, channels: int = 3) -> Any:
    return find_space("classics")((side, side, channels), 10, 1000, Protocol(2))


@pytest.mark.parametrize(
    ("network", "side", "parameters"),
    [
        (ALEXNET, 227, 60_965_224),  # with two groups, as in the paper
        (VGG16, 224, 138_357_544),
        (GOOGLENET, 224, 6_998_552),  # with biases, without the heads beside the last one
        (NETWORKS["lenet5"], 32, 62_030 + 990 * 85),  # 61,706 for digits, here of 3 channels
    ],
)
def test_at_the_size_of_its_paper_each_has_its_known_parameters(
    network: Any, side: int, parameters: int
) -> None:
    keras.utils.clear_session()
    assert scaled(network, side) == network
    assert build_network(network, (side, side, 3), 1000).count_params() == parameters


def test_googlenet_halves_its_maps_five_times_and_takes_three_billion_flops() -> None:
    model = build_network(GOOGLENET, (224, 224, 3), 1000)
    assert model.get_layer("average").input.shape == (None, 7, 7, 1024)
    assert 2 * 1.5e9 < count_flops(model) < 2 * 1.7e9  # the paper: 1.5 G multiplications


@pytest.mark.parametrize("side", [28, 32, 64])
def test_small_images_lose_no_block(side: int) -> None:
    for network in made(side).networks.values():
        assert fitting_blocks(network, (side, side, 3)) == network.blocks


def test_each_is_a_baseline_and_a_point_of_the_space() -> None:
    space = made(8, channels=1)
    names = [hp.name for hp in declared(space).space]
    assert "architecture" in names
    assert "filters_1" not in names
    for name in NETWORKS:
        values = space.baseline_values(name)
        assert values["architecture"] == name
        hp = space.hyperparameters(values)
        described = json.loads(json.dumps(as_json(space.configure(hp))))
        assert described["network"]["blocks"]
    assert list(space.baselines) == list(NETWORKS)


def test_the_smallest_is_built_compiled_and_trained_by_its_space() -> None:
    space = made(8, channels=1)
    hp = space.hyperparameters(space.baseline_values("lenet5"))
    model = space.build(hp)
    images, labels = keras.ops.zeros((64, 8, 8, 1), "uint8"), [i % 10 for i in range(64)]
    history = space.fit(
        hp, model, keras.ops.convert_to_numpy(images), labels, epochs=1, verbose=0
    ).history
    assert history["loss"][0] > 0
    assert space.step_of(hp) == (64, False)


def test_its_sweep_compares_all_of_them() -> None:
    sweep = read("classics", {"data": "fashion_mnist"})
    assert (sweep.search_space, sweep.baselines, sweep.final.baselines) == (
        "classics",
        ["all"],
        ["all"],
    )
