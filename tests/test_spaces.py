"""Tests of `search_spaces`: baselines are points, random points are models, names are fields."""

import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest

from cnn_search.augmentation import AugmentationConfig
from cnn_search.datasets import load
from cnn_search.definition import read
from cnn_search.errors import DefinitionError
from cnn_search.network import BlockConfig, NetworkConfig, build_network, fitting_blocks
from cnn_search.optimisation import TrainingConfig
from cnn_search.spaces import declared, outside, size, with_defaults
from cnn_search.subject import searched
from cnn_search.training import Configuration, Protocol, find_space
from search_spaces import images
from search_spaces.classics import Space as Classics

# name of a space: the shape of its images, its classes
SPACES: dict[str, tuple[tuple[int, int, int], int]] = {
    "cifar10": ((32, 32, 3), 10),
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "signs": ((64, 64, 3), 6),
    "images": ((40, 48, 3), 5),  # a user's folder
}
BASELINES = [(name, which) for name in SPACES for which in find_space(name).baselines]


def make(name: str, **options: Any) -> images.Space:
    shape, classes = SPACES[name]
    space: images.Space = find_space(name)(shape, classes, 1000, Protocol(3), **options)
    return space


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> images.Space:
    """Gives each space, made for images of its data set's shape."""
    return make(request.param)


def random_points(space: images.Space, count: int) -> list[dict[str, Any]]:
    """Draws distinct points as `keras_tuner.RandomSearch` does."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective="val_accuracy", max_trials=count, hyperparameters=space.hyperparameters(), seed=1
    )
    return [oracle.populate_space(str(number))["values"] for number in range(count)]


def test_a_space_knows_how_many_points_it_has() -> None:
    hp = keras_tuner.HyperParameters()
    kind = hp.Choice("kind", ["a", "b", "c"])
    with hp.conditional_scope("kind", ["a", "b"]):
        hp.Boolean("only_ab")
    hp.Fixed("fixed", 1)
    assert kind == "a"
    assert [size(hp, most) for most in (3, 5, 6, 100)] == [3, 5, 5, 5]
    hp.Float("rate", 0.1, 0.2)
    assert size(hp, 100) == 100


# Baselines and defaults


def test_the_defaults_are_the_first_baseline(space: images.Space) -> None:
    name, first = next(iter(space.baselines.items()))
    assert space.configure(keras_tuner.HyperParameters()) == first.configuration
    assert space.hyperparameters().values == space.baseline_values(name)


@pytest.mark.parametrize(("name", "which"), BASELINES)
def test_every_baseline_is_a_point_of_its_space(name: str, which: str) -> None:
    space = make(name)
    values = space.baseline_values(which)
    configuration = space.baselines[which].configuration
    assert space.configure(space.hyperparameters(values)) == configuration
    for entry in space.hyperparameters(values).space:
        if entry.name in values and isinstance(entry, keras_tuner.engine.hyperparameters.Choice):
            assert values[entry.name] in entry.values, entry.name
    through_a_ledger = json.loads(json.dumps(values))
    assert space.configure(space.hyperparameters(through_a_ledger)) == configuration


@pytest.mark.parametrize("name", [*SPACES, "cifar10_gpu"])
def test_every_recipe_is_a_point_of_its_space_and_of_the_shipped_sweep(name: str) -> None:
    sweep = read(name)
    shape, classes = SPACES[name.removesuffix("_gpu")]
    space = find_space(sweep.search_space)(shape, classes, 1000, Protocol(3))
    space.build(space.hyperparameters(space.baseline_values(next(iter(space.baselines)))))
    left = searched(sweep, declared(space))
    points = space.recipe_values()
    assert points.keys() == space.recipes.keys()
    for recipe, values in points.items():
        assert space.configure(space.hyperparameters(values)) == space.recipes[recipe]
        assert outside(left, values) == []
        space.build(space.hyperparameters(values))


class Shallow(images.Space):
    """A space of fewer blocks than the recipe that it inherits."""

    depth = (1, 2, 3)


class Padded(images.Space):
    """A space with a recipe that none of its points is, whatever is chosen."""

    recipes = {"padded": Configuration(dataclasses.replace(images.VGG_BN.network, pad_to=64))}


def test_a_recipe_that_is_no_point_of_a_space_is_left_out_or_refused_if_it_is_its_own() -> None:
    assert Shallow((32, 32, 3), 10, 1000, Protocol(3)).recipe_values() == {}
    with pytest.raises(DefinitionError, match="recipe 'padded' is not one of its points"):
        Padded((32, 32, 3), 10, 1000, Protocol(3)).recipe_values()


def test_a_space_without_the_smallest_depth_has_all_blocks(monkeypatch: Any) -> None:
    # blocks were numbered by the depths: with 2 and 3 alone, there was no first one
    monkeypatch.setattr(images.Space, "depth", (2, 3))
    space = make("images")
    names = {hp.name for hp in space.hyperparameters().space}
    assert {"filters_1", "filters_2", "filters_3"} <= names
    assert "filters_4" not in names
    assert len(space.configure(space.hyperparameters({"depth": 2})).network.blocks) == 2


def test_the_fast_recipe_of_cifar10_has_the_layers_that_it_says() -> None:
    space = make("cifar10")
    model = space.build(space.hyperparameters(space.recipe_values()["fast"]))
    kernels = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    offsets = 24 + 2 * 64 + 4 * 256  # of the whitening, of batch normalisations
    learned = kernels + offsets + 256 * 10 + 10
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == learned
    assert model.count_params() == learned + 2 * 2 * 3 * 24 + 2 * (2 * 64 + 4 * 256)


def test_a_space_that_never_averages_is_declared(monkeypatch: Any) -> None:
    monkeypatch.setattr(images.Space, "averaging", (0.0,))
    hp = make("images").hyperparameters()
    assert hp.values["averaging"] == 0.0
    assert "lookahead" not in hp.values


def test_what_a_space_has_had_added_since_is_at_its_default() -> None:
    whole = declared(make("images"))
    old = {"averaging": 0.99, "gone": 1, "warmup": 0.1}  # without a schedule that warms up
    values = with_defaults(whole, old)
    assert (values["averaging"], values["lookahead"], values["gone"]) == (0.99, 0, 1)
    assert "warmup" not in values
    assert set(values) - {"gone"} == {hp.name for hp in whole.space if active(whole, values, hp)}


def active(space: Any, values: Any, hp: Any) -> bool:
    filled = space.copy()
    filled.values = dict(values)
    return bool(filled.is_active(hp))


def test_a_baseline_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DefinitionError, match=r"baselines: expected some of conv7; received 'x'"):
        make("signs").baseline_values("x")


class Narrow(images.Space):
    """A space whose baseline, vgg_bn, pads its images otherwise than any of its points."""

    baselines = {
        "padded": dataclasses.replace(
            images.BASELINES["vgg_bn"],
            configuration=dataclasses.replace(
                images.VGG_BN, network=dataclasses.replace(images.VGG_BN.network, pad_to=64)
            ),
        )
    }


def test_a_baseline_that_is_no_point_of_its_space_is_refused() -> None:
    narrow = Narrow((32, 32, 3), 10, 1000, Protocol(3))
    with pytest.raises(DefinitionError, match="baseline 'padded' is not one of its points"):
        narrow.baseline_values("padded")


# Random points


def test_200_random_points_are_networks_with_a_block_that_fits(space: images.Space) -> None:
    # a fifth of the points of digits, two in a hundred of the others, once failed for want of it
    declared = {entry.name for entry in space.hyperparameters().space}
    points = random_points(space, 200)
    for values in points:
        assert set(values) <= declared
        configuration = space.configure(space.hyperparameters(values))
        fitting = fitting_blocks(configuration.network, space.input_shape)
        assert 1 <= len(fitting) <= values["depth"]
        dropped = space.blocks_dropped(space.hyperparameters(values))
        assert dropped == values["depth"] - len(fitting)
        assert json.loads(json.dumps(values)) == values
    assert len({json.dumps(values, sort_keys=True) for values in points}) == 200


@pytest.mark.slow
def test_random_points_really_are_built(space: images.Space) -> None:
    # other points each day; `make test-all` builds all
    turn = datetime.date.today().toordinal() % 5
    shown = slice(None) if "CNN_SEARCH_ALL_FAULTS" in os.environ else slice(turn, None, 5)
    for values in random_points(space, 200)[shown]:
        keras.utils.clear_session()
        network = space.configure(space.hyperparameters(values)).network
        model = build_network(network, space.input_shape, space.classes)
        assert model.output.shape == (None, space.classes)
        assert model.count_params() > 0


@pytest.mark.parametrize("side", [4, 5])
def test_every_point_fits_the_smallest_images(side: int) -> None:
    space = images.Space((side, side, 3), 10, 100, Protocol(2))
    for values in random_points(space, 300):
        network = space.configure(space.hyperparameters(values)).network
        assert fitting_blocks(network, space.input_shape)


def test_what_a_grid_leaves_alone_is_the_baseline_s() -> None:
    space = Classics((32, 32, 3), 10, 100, Protocol(2))
    defaults = {entry.name: entry.default for entry in space.hyperparameters().space}
    [book] = [space.baseline_values(name) for name in list(space.baselines)[:1]]
    assert book["optimiser"] == "sgd"
    assert {name: defaults[name] for name in book} == book


def test_a_first_block_that_does_not_fit_keeps_the_size_of_its_map() -> None:
    space = make("digits")
    valid = {"padding_1": "valid", "kernel": 5}
    fits = space.configure(space.hyperparameters(valid | {"convolutions": 1}))
    assert fits.network.blocks[0].padding == "valid"
    does_not = space.configure(space.hyperparameters(valid | {"convolutions": 2}))
    assert does_not.network.blocks[0].padding == "same"


# Conditional hyperparameters


@pytest.mark.parametrize(
    ("values", "inactive", "active"),
    [
        ({"optimiser": "adam"}, ["momentum", "sgd_learning_rate"], ["learning_rate"]),
        ({"optimiser": "rmsprop"}, ["momentum", "sgd_learning_rate"], ["learning_rate"]),
        ({"optimiser": "sgd"}, ["learning_rate"], ["momentum", "sgd_learning_rate"]),
        ({"depth": 3}, [f"{name}_4" for name in images.PER_BLOCK], ["filters_3"]),
        ({"depth": 1}, ["filters_2", "dropout_3", "padding_4"], ["filters_1"]),
        ({"depth": 4}, [], [f"{name}_4" for name in images.PER_BLOCK]),
        ({"schedule": "constant"}, ["warmup"], []),
        ({"schedule": "one_cycle"}, ["warmup"], []),
        ({"schedule": "triangular"}, ["warmup"], []),
        ({"schedule": "cosine"}, [], ["warmup"]),
        ({"dense_units": 0}, ["head_normalisation"], []),
        ({"dense_units": 64}, [], ["head_normalisation"]),
    ],
)
def test_a_hyperparameter_is_inactive_where_it_has_no_effect(
    space: images.Space, values: dict[str, Any], inactive: list[str], active: list[str]
) -> None:
    if "depth" in values and max(space.depth) < 4:
        pytest.skip(f"the images of this space are too small for four blocks: {space.depth}")
    hp = space.hyperparameters(values)
    assert [name for name in inactive if hp.is_active(name) or name in hp.values] == []
    assert [name for name in active if not hp.is_active(name) or name not in hp.values] == []
    expected = space.configure(hp)
    other = {name: values_of(hp, name)[-1] for name in inactive}
    assert space.configure(space.hyperparameters(values | other)) == expected


def values_of(hp: Any, name: str) -> list[Any]:
    (entry,) = [entry for entry in hp.space if entry.name == name]
    return list(entry.values) if hasattr(entry, "values") else [entry.max_value]


def test_the_rate_of_the_chosen_optimiser_is_taken() -> None:
    space = make("digits")
    rates = {"learning_rate": 2e-3, "sgd_learning_rate": 0.3, "momentum": 0.8}
    sgd = space.configure(space.hyperparameters(rates | {"optimiser": "sgd"})).training
    assert (sgd.learning_rate, sgd.momentum) == (0.3, 0.8)
    adam = space.configure(space.hyperparameters(rates)).training
    assert (adam.optimiser, adam.learning_rate, adam.momentum) == ("adam", 2e-3, 0.9)


def test_a_residual_block_with_valid_padding_has_no_shortcut() -> None:
    space = make("cifar10")
    values = {"residual": True, "padding_2": "valid"}
    blocks = space.configure(space.hyperparameters(values)).network.blocks
    assert [block.residual for block in blocks] == [True, False, True]


# What a space declares


def test_hyperparameters_are_named_as_the_fields_that_they_set(space: images.Space) -> None:
    configs = (NetworkConfig, AugmentationConfig, TrainingConfig)
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    of_blocks = {field.name for field in dataclasses.fields(BlockConfig)}
    numbered = {f"{name}_{i}" for name in of_blocks for i in space.depth}
    names = [entry.name for entry in space.hyperparameters().space]
    assert len(names) == len(set(names))  # KerasTuner's grid needs it
    others = set(names) - fields - of_blocks - numbered
    assert others == {"depth", "standardise", "sgd_learning_rate"}


def test_a_value_sets_the_field_of_its_name(space: images.Space) -> None:
    for entry in space.hyperparameters().space:
        hp = space.hyperparameters()
        if not hp.is_active(entry.name) or entry.name in ("depth", "standardise", "dense_units"):
            continue
        value = values_of(hp, entry.name)[-1] if hasattr(entry, "values") else entry.default
        if isinstance(entry, keras_tuner.engine.hyperparameters.Boolean):
            value = not entry.default
        changed = space.configure(space.hyperparameters({entry.name: value}))
        found = images.flatten(changed)
        assert found[entry.name] == value, entry.name
        assert type(found[entry.name]) is type(value), entry.name


def test_standardise_sets_the_published_means_of_the_pixels() -> None:
    space = make("cifar10")
    network = space.configure(space.hyperparameters({"standardise": True})).network
    assert network.pixel_mean == (0.4914, 0.4822, 0.4465)
    assert network.pixel_deviation == (0.2470, 0.2435, 0.2616)


def test_the_means_of_the_pixels_are_those_of_the_training_images() -> None:
    space, pixels = make("digits"), load("digits").train.images / 255
    assert space.pixel_mean == pytest.approx([pixels.mean()], abs=0.002)
    assert space.pixel_deviation == pytest.approx([pixels.std()], abs=0.002)


def test_configure_is_pure(space: images.Space, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("configure builds no layer")

    monkeypatch.setattr(keras.layers.Layer, "__init__", refuse)
    for values in ({}, *random_points(space, 20)):
        hp = space.hyperparameters(values)
        before, declared = dict(hp.values), [entry.name for entry in hp.space]
        one, other = space.configure(hp), space.configure(hp)
        assert one == other
        assert hash(one) == hash(other)
        assert (hp.values, [entry.name for entry in hp.space]) == (before, declared)


def test_every_point_declares_the_same_hyperparameters(space: images.Space) -> None:
    """So that an oracle knows the whole space before the first trial."""
    declared = [entry.get_config() for entry in space.hyperparameters().space]
    for values in random_points(space, 20):
        found = [entry.get_config() for entry in space.hyperparameters(values).space]
        assert found == declared


def test_a_point_is_described_in_plain_json(space: images.Space) -> None:
    described = space.describe(space.hyperparameters())
    assert json.loads(json.dumps(described)) == described
    assert described["protocol"] == {"epochs": 3, "monitor": "val_loss"} | {
        "patience": 0,
        "weights": "best",
    }


def test_build_spans_a_schedule_over_the_protocols_epochs() -> None:
    space = make("digits")
    hp = space.hyperparameters({"depth": 1, "schedule": "cosine", "batch_size": 64})
    schedule = space.build(hp).optimizer._learning_rate
    assert schedule.steps == 16 * 3  # 1,000 images in batches of 64, the last one smaller


# In plain KerasTuner


class RandomSearch(keras_tuner.RandomSearch):
    """KerasTuner 1.4.8's own, without the `tensorboard` that it asks for and does not declare."""

    def _configure_tensorboard_dir(self, *args: Any, **options: Any) -> None:
        pass


def test_the_digits_space_runs_unchanged_in_plain_keras_tuner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load("digits")
    space = find_space("digits")((8, 8, 1), 10, 128, Protocol(1))
    tuner = RandomSearch(
        space,
        objective="val_accuracy",
        max_trials=2,
        seed=1,
        directory=tmp_path,
        project_name="digits",
    )
    tuner.search(
        digits.train.images[:128],
        digits.train.labels[:128],
        validation_data=(digits.validation.images[:64], digits.validation.labels[:64]),
        epochs=1,
        verbose=0,
    )
    trials = tuner.oracle.get_best_trials(2)
    assert [trial.status for trial in trials] == ["COMPLETED"] * 2, capsys.readouterr().out
    assert all(0 <= trial.score <= 1 for trial in trials)
    (best,) = tuner.get_best_hyperparameters(1)
    assert space.configure(best).network.blocks
    model = tuner.get_best_models(1)[0]
    probabilities = model.predict(digits.validation.images[:8], verbose=0)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
