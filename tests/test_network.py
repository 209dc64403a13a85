"""Tests of `cnn_search.network`: real Keras models, their sizes, order of layers and files."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy

from cnn_search.datasets import load
from cnn_search.errors import DefinitionError
from cnn_search.network import (
    BlockConfig,
    NetworkConfig,
    averaged,
    build_network,
    count_flops,
    fitting_blocks,
    whiten,
)
from cnn_search.training import Baseline
from search_spaces import cifar10, digits, fashion_mnist, signs

# data set: its baselines, the shape of its images, its classes
DATA_SETS = {
    "cifar10": (cifar10.BASELINES, (32, 32, 3), 10),
    "digits": (digits.BASELINES, (8, 8, 1), 10),
    "fashion_mnist": (fashion_mnist.BASELINES, (28, 28, 1), 10),
    "signs": (signs.BASELINES, (64, 64, 3), 6),
}
PRINTED = {  # parameters, all and trainable, as the tutorials print them
    "cifar10/vgg_bn": (552_362, 551_466),
    "cifar10/vgg_bn_as_coded": (552_874, 551_722),
    "cifar10/one_conv": (226_390, 226_390),
    "cifar10/wide_conv": (1_628_214, 1_628_214),
    "cifar10/two_conv": (167_562, 167_562),
    "cifar10/lenet5": (62_030, 62_018),
    "digits/vgg_bn": (306_026, 305_130),
    "fashion_mnist/one_conv": (804_554, 804_554),
    "signs/conv7": (170_438, 170_246),
}


@pytest.fixture(scope="module")
def images() -> Any:
    """Gives 32 real digits, uint8 (32, 8, 8, 1)."""
    return load("digits").train.images[:32]


def counted(model: Any) -> tuple[int, int]:
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return model.count_params(), trainable


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def names(model: Any) -> list[str]:
    return [layer.name for layer in model.layers]


# The tutorials' models


def test_every_baseline_is_listed_here() -> None:
    listed = {f"{name}/{which}" for name, (rows, _, _) in DATA_SETS.items() for which in rows}
    assert listed == set(PRINTED)


@pytest.mark.parametrize("which", PRINTED)
def test_a_baseline_has_exactly_the_parameters_that_its_tutorial_prints(which: str) -> None:
    name, baseline_name = which.split("/")
    baselines, shape, classes = DATA_SETS[name]
    baseline: Baseline = baselines[baseline_name]
    model = build_network(baseline.configuration.network, shape, classes)
    assert counted(model) == PRINTED[which] == baseline.parameters


def test_lenet5_pads_smaller_images_to_32_pixels() -> None:
    network = dataclasses.replace(cifar10.LENET5, pad_to=32)
    model = build_network(network, (28, 28, 1), 10)
    assert counted(model) == (61_730, 61_718)
    assert model.get_layer("pad").output.shape == (None, 32, 32, 1)
    image = np.full((1, 28, 28, 1), 255, np.uint8)
    padded = convert_to_numpy(keras.Model(model.input, model.get_layer("pad").output)(image))
    np.testing.assert_array_equal(padded[0, 2:30, 2:30], 1)
    assert padded.sum() == 28 * 28


def test_an_odd_padding_puts_the_extra_pixel_below_and_right() -> None:
    network = NetworkConfig((BlockConfig(1),), pad_to=8)
    model = build_network(network, (5, 8, 1), 2)
    assert model.get_layer("pad").padding == ((1, 2), (0, 0))


def test_images_that_are_large_enough_get_no_padding_layer() -> None:
    model = build_network(NetworkConfig((BlockConfig(1),), pad_to=8), (8, 9, 1), 2)
    assert "pad" not in names(model)


# Input and output


def test_raw_uint8_images_go_in_and_float32_probabilities_come_out(images: Any) -> None:
    model = build_network(NetworkConfig((BlockConfig(4, pooling="max"),)), (8, 8, 1), 10)
    assert model.inputs[0].dtype == "uint8"
    assert model.inputs[0].shape == (None, 8, 8, 1)
    probabilities = convert_to_numpy(model(images))
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (32, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert not model.compiled


def test_pixels_are_scaled_to_1_and_standardised_by_constants(images: Any) -> None:
    blocks = (BlockConfig(2),)
    plain = build_network(NetworkConfig(blocks), (8, 8, 1), 10)
    np.testing.assert_allclose(plain.get_layer("rescale")(images), images / 255, atol=1e-6)
    mean, deviation = (0.1, 0.5, 0.4), (0.2, 0.25, 0.5)
    network = NetworkConfig(blocks, pixel_mean=mean, pixel_deviation=deviation)
    model = build_network(network, (8, 8, 3), 10)
    coloured = np.repeat(images, 3, axis=3)
    coloured[..., 1] = 255 - coloured[..., 1]
    expected = (coloured / 255 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(model.get_layer("rescale")(coloured), expected, atol=1e-5)
    same_without = dataclasses.replace(network, pixel_mean=(0.0,), pixel_deviation=(1.0,))
    assert counted(model) == counted(build_network(same_without, (8, 8, 3), 10))


def test_whitening_gives_the_principal_directions_of_the_training_images_patches() -> None:
    images = load("digits").train.images
    network = NetworkConfig((BlockConfig(2),), whitening=True, activation="linear")
    model = build_network(network, images.shape[1:], 10)
    whiten(model, images)
    found = convert_to_numpy(model.get_layer("whitening")(images / np.float32(255)))
    half = found.shape[-1] // 2
    assert half == 4 * images.shape[-1]
    assert found.shape[1:3] == (images.shape[1] - 1, images.shape[2] - 1)
    np.testing.assert_array_equal(found[..., half:], -found[..., :half])
    covariance = np.cov(found[..., :half].reshape(-1, half).astype(float), rowvar=False)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    # of the largest directions the variance is 1; what is hardly there is not blown up
    assert np.diag(covariance).max() == pytest.approx(1, abs=0.01)
    assert np.diag(covariance).min() >= 0


def test_a_whitening_takes_fewer_photographs_the_larger_they_are() -> None:
    network = NetworkConfig((BlockConfig(2),), whitening=True)
    images = np.random.default_rng(1).integers(0, 256, (320, 128, 128, 1), np.uint8)
    kernels = []
    for count in (312, 320, 300):
        model = build_network(network, (128, 128, 1), 10)
        whiten(model, images[:count])
        kernels.append(model.get_layer("whitening").get_weights()[0])
    np.testing.assert_array_equal(kernels[0], kernels[1])  # 5000 of 32x32 pixels, 312 of these
    assert (kernels[0] != kernels[2]).any()


def test_whitening_learns_its_offsets_alone(images: Any) -> None:
    keras.utils.set_random_seed(1)
    network = NetworkConfig((BlockConfig(2),), whitening=True)
    model = build_network(network, (8, 8, 1), 10)
    whiten(model, images)
    kernel, bias = (weight.copy() for weight in model.get_layer("whitening").get_weights())
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images, np.arange(32) % 10, verbose=0)
    after = model.get_layer("whitening").get_weights()
    np.testing.assert_array_equal(after[0], kernel)
    assert (after[1] != bias).any()


def test_identity_passes_the_input_of_each_convolution_on_through_its_first_filters(
    images: Any,
) -> None:
    network = NetworkConfig((BlockConfig(5, convolutions=2),), "linear", identity=True)
    model = build_network(network, (8, 8, 1), 10)
    scaled = images / np.float32(255)
    first = convert_to_numpy(model.get_layer("block1_conv1")(scaled))
    np.testing.assert_allclose(first[..., :1], scaled, atol=1e-6)
    assert all((first[..., k] != scaled[..., 0]).any() for k in range(1, 5))
    second = convert_to_numpy(model.get_layer("block1_conv2")(first))
    np.testing.assert_allclose(second, first, atol=1e-6)


def test_batch_normalisation_has_the_momentum_and_scale_that_are_asked_for() -> None:
    blocks = (BlockConfig(2, normalisation="batch"),)
    settings = {"normalisation_momentum": 0.6, "normalisation_scale": False}
    network = NetworkConfig(blocks, dense_units=(3,), head_normalisation="batch", **settings)
    model = build_network(network, (8, 8, 1), 10)
    for name in ("block1_conv1_norm", "dense1_norm"):
        layer = model.get_layer(name)
        assert (layer.momentum, layer.scale, layer.center) == (0.6, False, True)


def test_logits_are_scaled(images: Any) -> None:
    plain, scaled = (
        build_network(NetworkConfig((BlockConfig(2),), logit_scale=scale), (8, 8, 1), 10, seed=1)
        for scale in (1.0, 0.1)
    )
    one, other = (np.log(convert_to_numpy(model(images))) for model in (plain, scaled))
    differences = [(logits - logits.mean(1, keepdims=True)) for logits in (one, other)]
    np.testing.assert_allclose(differences[1], 0.1 * differences[0], atol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 6])
def test_a_prediction_of_many_views_is_their_mean(views: int, images: Any, tmp_path: Path) -> None:
    model = build_network(NetworkConfig((BlockConfig(4),)), (8, 8, 1), 10)
    wide = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    shown = {1: [(images, 1.0)], 2: [(images, 0.5), (images[:, :, ::-1], 0.5)]}
    moved = [wide[:, :-2, :-2], wide[:, 2:, 2:]]
    shown[6] = [(image, weight / 2) for image, weight in shown[2]]
    shown[6] += [(image, 0.125) for one in moved for image in (one, one[:, :, ::-1])]
    expected = sum(weight * convert_to_numpy(model(image)) for image, weight in shown[views])
    whole = averaged(model, views)
    whole.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for found in (whole, loaded):
        np.testing.assert_allclose(convert_to_numpy(found(images)), expected, atol=1e-6)


def test_every_layer_is_one_of_kerass_own_and_none_is_a_lambda() -> None:
    network = NetworkConfig(
        (BlockConfig(4, normalisation="batch", pooling="average", dropout=0.1, residual=True),),
        activation="gelu",
        head="average",
        dense_units=(8,),
        head_normalisation="batch",
        head_dropout=0.5,
        pad_to=12,
    )
    model = build_network(network, (8, 8, 1), 10)
    assert all(type(layer).__module__.startswith("keras.src.layers") for layer in model.layers)
    assert "Lambda" not in kinds(model)


# Blocks that do not fit


def test_blocks_that_do_not_fit_are_dropped_from_the_end() -> None:
    blocks = tuple(BlockConfig(filters, pooling="max") for filters in (2, 3, 4, 5))
    network = NetworkConfig(blocks)
    assert fitting_blocks(network, (8, 8, 1)) == blocks[:3]
    model = build_network(network, (8, 8, 1), 10)
    assert model.get_layer("block3_pool").output.shape == (None, 1, 1, 4)
    assert not [name for name in names(model) if name.startswith("block4")]
    assert fitting_blocks(network, (16, 16, 1)) == blocks


def test_the_shorter_side_decides_what_fits() -> None:
    blocks = tuple(BlockConfig(2, pooling="max") for _ in range(3))
    assert len(fitting_blocks(NetworkConfig(blocks), (100, 4, 1))) == 2
    assert len(fitting_blocks(NetworkConfig(blocks), (4, 100, 1))) == 2


def test_a_later_block_that_would_fit_goes_with_the_one_before_it() -> None:
    blocks = (BlockConfig(2), BlockConfig(2, kernel=9, padding="valid"), BlockConfig(2))
    assert fitting_blocks(NetworkConfig(blocks), (8, 8, 1)) == blocks[:1]


def test_a_first_block_that_does_not_fit_is_the_users_mistake() -> None:
    network = NetworkConfig((BlockConfig(2, kernel=5, convolutions=2, padding="valid"),))
    message = (
        r"network: expected a first block that fits images of 8x8 pixels; received kernel 5, "
        r"padding 'valid', pool size 2\. Choose smaller ones\."
    )
    with pytest.raises(DefinitionError, match=message):
        build_network(network, (8, 8, 1), 10)
    build_network(network, (9, 9, 1), 10)


def test_a_residual_block_must_keep_the_size_of_its_map() -> None:
    network = NetworkConfig((BlockConfig(2), BlockConfig(2, padding="valid", residual=True)))
    with pytest.raises(DefinitionError, match=r"padding 'same' in a residual block; block 2 has"):
        build_network(network, (8, 8, 1), 10)


def random_block(rng: np.random.Generator) -> BlockConfig:
    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    return BlockConfig(
        filters=2,
        convolutions=one(1, 1, 2, 3),
        kernel=one(1, 2, 3, 5),
        stride=one(1, 1, 2, 3),
        padding=(padding := one("same", "valid")),
        pooling=one("none", "max", "average"),
        pool_size=one(1, 2, 3),
        pool_stride=one(0, 0, 1, 2, 3),
        pooling_place=one("end", "inside"),
        residual=padding == "same" and one(False, True),
    )


def random_network(seed: int) -> tuple[NetworkConfig, tuple[int, int, int]]:
    rng = np.random.default_rng(seed)
    blocks = tuple(random_block(rng) for _ in range(rng.integers(1, 5)))
    height, width = (int(side) for side in rng.integers(3, 24, 2))
    return NetworkConfig(blocks, pad_to=int(rng.choice([0, 0, 16]))), (height, width, 1)


def shape_after(block: BlockConfig, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Asks Keras's own layers for the shape of the map after a block; None if there is none."""
    pools = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}
    units: list[Any] = []
    for index in range(block.convolutions):
        stride = block.stride if index == 0 else 1
        units.append(keras.layers.Conv2D(2, block.kernel, stride, block.padding))
        if block.pooling != "none" and index == 0 and block.pooling_place == "inside":
            units.append(pools[block.pooling](block.pool_size, block.pool_stride or None))
    if block.pooling != "none" and block.pooling_place == "end":
        units.append(pools[block.pooling](block.pool_size, block.pool_stride or None))
    for unit in units:
        try:
            shape = unit.compute_output_shape(shape)
        except ValueError:  # "Computed output size would be negative"
            return None
        if min(shape[1:]) < 1:
            return None
    return shape


def test_fitting_blocks_agrees_with_the_shapes_that_keras_computes() -> None:
    dropped = refused = 0
    for seed in range(400):
        network, input_shape = random_network(seed)
        sides = [max(side, network.pad_to) for side in input_shape[:2]]
        shape: tuple[int, ...] | None = (1, *sides, 1)
        fitting = 0
        while shape and fitting < len(network.blocks):
            shape = shape_after(network.blocks[fitting], shape)
            fitting += shape is not None
        if fitting:
            assert fitting_blocks(network, input_shape) == network.blocks[:fitting], seed
            dropped += fitting < len(network.blocks)
        else:
            refused += 1
            with pytest.raises(DefinitionError, match="expected a first block that fits"):
                fitting_blocks(network, input_shape)
    assert dropped > 50
    assert refused > 20


def test_random_networks_really_are_built_with_the_maps_that_were_foreseen() -> None:
    built = 0
    for seed in range(1000, 1016):
        network, input_shape = random_network(seed)
        try:
            blocks = fitting_blocks(network, input_shape)
        except DefinitionError:
            continue
        keras.utils.clear_session()
        model = build_network(network, input_shape, 3)
        shape: Any = (None, *(max(side, network.pad_to) for side in input_shape[:2]), 1)
        for index, block in enumerate(blocks, 1):
            last = [name for name in names(model) if name.startswith(f"block{index}_")]
            shape = shape_after(block, shape)
            assert model.get_layer(last[-1]).output.shape == shape, (seed, network)
        assert model(np.zeros((1, *input_shape), np.uint8)).shape == (1, 3)
        built += 1
    assert built > 8


# What stands where


def test_batch_normalisation_stands_before_or_after_the_activation() -> None:
    after = NetworkConfig((BlockConfig(2, convolutions=2, normalisation="batch"),))
    assert kinds(build_network(after, (8, 8, 1), 3))[2:8] == (
        ["Conv2D", "Activation", "BatchNormalization"] * 2
    )
    block = dataclasses.replace(after.blocks[0], normalisation_place="before")
    before = dataclasses.replace(after, blocks=(block,))
    assert kinds(build_network(before, (8, 8, 1), 3))[2:8] == (
        ["Conv2D", "BatchNormalization", "Activation"] * 2
    )


def test_pooling_stands_at_the_end_or_after_the_first_convolution() -> None:
    end = BlockConfig(2, convolutions=2, pooling="max", dropout=0.1)
    assert kinds(build_network(NetworkConfig((end,)), (8, 8, 1), 3))[2:8] == (
        ["Conv2D", "Activation", "Conv2D", "Activation", "MaxPooling2D", "Dropout"]
    )
    inside = dataclasses.replace(end, pooling="average", pooling_place="inside")
    model = build_network(NetworkConfig((inside,)), (8, 8, 1), 3)
    assert kinds(model)[2:7] == (
        ["Conv2D", "AveragePooling2D", "Activation", "Conv2D", "Activation"]
    )
    assert model.get_layer("block1_conv2").output.shape == (None, 4, 4, 2)


def test_pooling_may_overlap() -> None:
    block = BlockConfig(2, pooling="max", pool_size=3, pool_stride=2)
    model = build_network(NetworkConfig((block,)), (8, 8, 1), 3)
    assert model.get_layer("block1_pool").output.shape == (None, 3, 3, 2)


def test_a_stride_belongs_to_a_blocks_first_convolution() -> None:
    block = BlockConfig(2, convolutions=3, stride=2)
    model = build_network(NetworkConfig((block,)), (9, 9, 1), 3)
    sides = [model.get_layer(f"block1_conv{i}").output.shape[1] for i in (1, 2, 3)]
    assert sides == [5, 5, 5]


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({}, []),  # 2 channels before it, 2 after: the block's input itself
        ({"filters": 3}, ["block2_shortcut"]),
        ({"stride": 2}, ["block2_shortcut", "block2_shortcut_stride"]),
        (
            {"filters": 3, "stride": 2, "pooling": "max"},
            ["block2_shortcut", "block2_shortcut_stride"],
        ),
        (
            {"pooling": "max", "pooling_place": "inside"},
            ["block2_shortcut", "block2_shortcut_pool"],
        ),
        (
            {"filters": 3, "stride": 2, "pooling": "average", "pooling_place": "inside"},
            ["block2_shortcut", "block2_shortcut_pool", "block2_shortcut_stride"],
        ),
    ],
)
def test_a_residual_block_adds_its_input_in_the_shape_of_its_output(
    change: dict[str, Any], layers: list[str]
) -> None:
    block = BlockConfig(**({"filters": 2, "convolutions": 2, "residual": True} | change))
    model = build_network(NetworkConfig((BlockConfig(2), block)), (8, 8, 1), 3)
    assert sorted(name for name in names(model) if "shortcut" in name) == layers
    one, other = model.get_layer("block2_add").input
    assert one.shape == other.shape == model.get_layer("block2_add").output.shape
    if block.pooling == "max" and block.pooling_place == "end":
        assert names(model).index("block2_pool") > names(model).index("block2_add")


def test_a_residual_block_with_a_stride_trains() -> None:
    """TensorFlow 2.21 with oneDNN crashes in the gradient of a strided convolution of 1x1."""
    program = """
        import keras, numpy
        from cnn_search.network import BlockConfig, NetworkConfig, build_network

        keras.utils.set_random_seed(1)
        block = BlockConfig(8, convolutions=1, stride=2, residual=True)
        model = build_network(NetworkConfig((block,), head="max"), (64, 64, 3), 6, seed=1)
        assert all(n.strides == (1, 1) for n in model.layers if n.name.endswith("shortcut"))
        model.compile("adam", "sparse_categorical_crossentropy")
        images = numpy.random.default_rng(1).integers(0, 256, (256, 64, 64, 3), numpy.uint8)
        model.fit(images, numpy.arange(256) % 6, batch_size=64, epochs=2, verbose=0)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_residual_block_whose_convolutions_are_nought_hands_its_input_on(images: Any) -> None:
    network = NetworkConfig((BlockConfig(2), BlockConfig(2, residual=True)))
    model = build_network(network, (8, 8, 1), 3)
    model.get_layer("block2_conv1").kernel.assign(np.zeros((3, 3, 2, 2)))
    before = keras.Model(model.input, model.get_layer("block1_conv1_relu").output)
    after = keras.Model(model.input, model.get_layer("block2_add").output)
    made = (convert_to_numpy(part(images)) for part in (before, after))
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize(
    ("head", "kind"),
    [("flatten", "Flatten"), ("average", "GlobalAveragePooling2D"), ("max", "GlobalMaxPooling2D")],
)
def test_the_head_flattens_or_pools_the_whole_map(head: Any, kind: str) -> None:
    network = NetworkConfig((BlockConfig(2),), head=head, dense_units=(5, 4), head_dropout=0.5)
    model = build_network(network, (8, 8, 1), 3)
    assert kinds(model)[-6:] == [kind, "Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert model.get_layer(head).output.shape == (None, 128 if head == "flatten" else 2)


def test_without_a_dense_layer_dropout_follows_the_pooling() -> None:
    network = NetworkConfig((BlockConfig(2),), head_dropout=0.5, head_normalisation="batch")
    assert kinds(build_network(network, (8, 8, 1), 3))[-3:] == ["Flatten", "Dropout", "Dense"]


def test_convolutions_keep_their_bias_unless_told() -> None:
    block = BlockConfig(3, normalisation="batch", residual=True)
    with_bias = build_network(NetworkConfig((block,)), (8, 8, 1), 3)
    without = build_network(NetworkConfig((block,), use_bias=False), (8, 8, 1), 3)
    assert counted(with_bias)[0] - counted(without)[0] == 3 + 3  # convolution and shortcut


def test_activation_and_initialisers_reach_their_layers() -> None:
    network = NetworkConfig(
        (BlockConfig(2),),
        activation="elu",
        initialiser="he_normal",
        dense_initialiser="he_uniform",
        dense_units=(4,),
    )
    model = build_network(network, (8, 8, 1), 3)
    convolution, dense = model.get_layer("block1_conv1"), model.get_layer("dense1")
    assert type(convolution.kernel_initializer).__name__ == "HeNormal"
    assert convolution.activation is keras.activations.linear
    assert model.get_layer("block1_conv1_elu").activation is keras.activations.elu
    assert type(dense.kernel_initializer).__name__ == "HeUniform"
    assert dense.activation is keras.activations.elu
    output = model.get_layer("probabilities")
    assert type(output.kernel_initializer).__name__ == "GlorotUniform"
    assert output.activation is keras.activations.softmax


# Operations and files


def test_the_operations_of_two_conv_are_those_counted_by_hand() -> None:
    network = cifar10.BASELINES["two_conv"].configuration.network
    by_hand = (
        2 * 30 * 30 * (3 * 3 * 3) * 32  # 3x3 valid on 32x32x3
        + 2 * 13 * 13 * (3 * 3 * 32) * 64  # 3x3 valid on 15x15x32
        + 2 * (6 * 6 * 64) * 64
        + 2 * 64 * 10
    )
    assert by_hand == 8_081_408
    assert count_flops(build_network(network, (32, 32, 3), 10)) == by_hand


def test_the_operations_of_a_shortcut_count() -> None:
    network = NetworkConfig((BlockConfig(4, stride=2, residual=True),), head="average")
    by_hand = 2 * 4 * 4 * (3 * 3 * 1) * 4 + 2 * 4 * 4 * (1 * 1 * 1) * 4 + 2 * 4 * 3
    assert count_flops(build_network(network, (8, 8, 1), 3)) == by_hand


def test_a_saved_model_gives_the_same_bits_in_a_process_that_knows_only_keras(
    images: Any, tmp_path: Path
) -> None:
    network = NetworkConfig(
        (
            BlockConfig(4, normalisation="batch", pooling="max", dropout=0.2),
            BlockConfig(6, stride=2, residual=True, normalisation="batch"),
        ),
        activation="gelu",
        head="average",
        dense_units=(8,),
        head_normalisation="batch",
        head_dropout=0.5,
        pad_to=12,
        pixel_mean=(0.3,),
        pixel_deviation=(0.4,),
    )
    model = build_network(network, (8, 8, 1), 10)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = textwrap.dedent(
        """
        import sys, keras, numpy
        model = keras.saving.load_model("model.keras", safe_mode=True)
        found = model(numpy.load("images.npy"), training=False)
        numpy.save("loaded.npy", keras.ops.convert_to_numpy(found))
        assert not {"cnn_search", "search_spaces", "keras_tuner"} & set(sys.modules)
        """
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    expected = convert_to_numpy(model(images, training=False))
    np.testing.assert_array_equal(np.load(tmp_path / "loaded.npy"), expected)


def test_configurations_can_be_compared_and_hashed() -> None:
    one, other = (NetworkConfig((BlockConfig(2), BlockConfig(3))) for _ in range(2))
    assert one == other
    assert len({one, other, dataclasses.replace(one, head="max")}) == 2
