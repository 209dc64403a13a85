"""Networks: one builder turns a NetworkConfig into a Keras model, for every baseline and space.

The configurations are frozen dataclasses: they can be compared, hashed and written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from cnn_search import backbones
from cnn_search.errors import DefinitionError

Pooling = Literal["none", "max", "average"]
Shape = tuple[int, int, int]
WHITENED = 5000  # training images that a whitening is computed from


@dataclass(frozen=True)
class BlockConfig:
    """A stack of equal convolutions, then pooling and dropout.

    Attributes:
        filters: Channels of each convolution.
        convolutions: How many convolutions follow each other, at least 1.
        kernel: Side of the square kernel in pixels.
        groups: Into how many parts of its input and output channels a convolution is split
            (AlexNet, Krizhevsky et al. 2012: two, one a GPU).
        stride: Stride of the block's first convolution; the others have 1.
        padding: "same" keeps the size of the map, "valid" loses `kernel - 1` pixels.
        normalisation: "batch" adds a batch normalisation to each convolution.
        normalisation_place: Whether it comes "before" or "after" the activation.
        pooling: Kind of pooling, or "none".
        pool_size: Side of the pooling window in pixels.
        pool_stride: Step of the pooling window; 0 means `pool_size`.
        pool_padding: "same" keeps what is left of a map at its edge, "valid" drops it.
        pooling_place: At the "end" of the block, or "inside", right after its first convolution.
        dropout: Share of activations dropped at the end of the block, in [0, 1).
        residual: Add the block's input to the output of its convolutions (before pooling at the
            end), through a 1x1 convolution where their shapes differ. Needs padding "same".
    """

    filters: int
    convolutions: int = 1
    kernel: int = 3
    groups: int = 1
    stride: int = 1
    padding: Literal["same", "valid"] = "same"
    normalisation: Literal["none", "batch"] = "none"
    normalisation_place: Literal["before", "after"] = "after"
    pooling: Pooling = "none"
    pool_size: int = 2
    pool_stride: int = 0
    pool_padding: Literal["same", "valid"] = "valid"
    pooling_place: Literal["end", "inside"] = "end"
    dropout: float = 0.0
    residual: bool = False


@dataclass(frozen=True)
class InceptionConfig:
    """Four ways side by side, their maps stacked (Szegedy et al. 2015, arXiv:1409.4842).

    Attributes:
        ones: Filters of a 1x1 convolution.
        threes: Of a 1x1 convolution, and of the 3x3 one after it.
        fives: Of a 1x1 convolution, and of the 5x5 one after it.
        pooled: Of a 1x1 convolution after a 3x3 max pooling.
        pooling: "max" halves the stacked maps in the end, by windows of 3x3.
    """

    ones: int
    threes: tuple[int, int]
    fives: tuple[int, int]
    pooled: int
    pooling: Literal["none", "max"] = "none"


Block = BlockConfig | InceptionConfig


@dataclass(frozen=True)
class NetworkConfig:
    """A convolutional network: blocks, then a head of dense layers and a softmax.

    Attributes:
        blocks: The convolutional blocks, first to last, each on its own.
        activation: Name of a Keras activation, used everywhere but in the softmax.
        initialiser: Keras initialiser of the convolutions.
        dense_initialiser: Keras initialiser of the dense layers.
        use_bias: Whether convolutions have a bias, also where a batch normalisation follows.
        whitening: Begin with a 2x2 convolution, without padding, whose fixed filters are the
            principal directions of the training images' patches, scaled to unit variance, and their
            negatives (see `whiten`; Coates and Ng 2012; Jordan 2024, arXiv:2404.00498).
        identity: The first filters of each convolution pass its input on, before training
            (Zagoruyko and Komodakis 2017, arXiv:1706.00388; Jordan 2024).
        normalisation_momentum: Share of the old statistics that a batch normalisation keeps at
            each step. A short training needs less than Keras's .99.
        normalisation_scale: Whether a batch normalisation learns a scale beside its offset.
        head: "flatten", or global "average" or "max" pooling.
        dense_units: Units of each dense layer before the softmax; may be empty.
        head_normalisation: "batch" adds a batch normalisation after each dense layer.
        head_dropout: Share of activations dropped after each dense layer, or after the pooling if
            there is none.
        logit_scale: What the softmax's layer gets is multiplied by it (1/9: Page 2018, "How to
            train your ResNet").
        views: What the finished model predicts is a mean over so many views of an image: 1; 2, the
            mirrored one too; 6, also both shifted by a pixel up left and down right, each at half
            the weight (Jordan 2024).
        pad_to: Images smaller than this many pixels a side are zero-padded to it; 0 for never.
        pixel_mean, pixel_deviation: Per channel, of pixels in 0..1: the model computes
            `(pixel / 255 - mean) / deviation`. Constants, so they add no weights.
        backbone: In place of the blocks, a network that was trained before: a key of
            `backbones.KNOWN`; it gets pixels as it did then.
        backbone_weights: "imagenet", or a file.
        fine_tuned: So many of the backbone's last convolutions are trained; the rest stays.
        resize_to: Images are scaled to so many pixels a side for the backbone; 0 for not at all.
    """

    blocks: tuple[Block, ...]
    activation: str = "relu"
    initialiser: str = "glorot_uniform"
    dense_initialiser: str = "glorot_uniform"
    use_bias: bool = True
    whitening: bool = False
    identity: bool = False
    normalisation_momentum: float = 0.99
    normalisation_scale: bool = True
    head: Literal["flatten", "average", "max"] = "flatten"
    dense_units: tuple[int, ...] = ()
    head_normalisation: Literal["none", "batch"] = "none"
    head_dropout: float = 0.0
    logit_scale: float = 1.0
    views: Literal[1, 2, 6] = 1
    pad_to: int = 0
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_deviation: tuple[float, ...] = (1.0,)
    backbone: str = ""
    backbone_weights: str = backbones.IMAGENET
    fine_tuned: int = 0
    resize_to: int = 0


def fitting_blocks(network: NetworkConfig, input_shape: Shape) -> tuple[Block, ...]:
    """Return the leading blocks whose maps keep at least one pixel; the rest is dropped.

    Raises:
        DefinitionError: not even the first block fits images of `input_shape`, or a residual
            block has padding "valid".
    """
    sides = [max(side, network.pad_to) - network.whitening for side in input_shape[:2]]
    for count, block in enumerate(network.blocks):
        if isinstance(block, InceptionConfig):
            sides = [-(-side // 2) if block.pooling == "max" else side for side in sides]
            continue
        sides = [_side_after(block, side) for side in sides]
        if min(sides) < 1:
            if count == 0:
                raise DefinitionError(
                    f"network: expected a first block that fits images of {input_shape[0]}x"
                    f"{input_shape[1]} pixels; received kernel {block.kernel}, padding "
                    f"{block.padding!r}, pool size {block.pool_size}. Choose smaller ones."
                )
            return network.blocks[:count]
        if block.residual and block.padding != "same":
            raise DefinitionError(
                f"network: expected padding 'same' in a residual block; block {count + 1} has "
                f"{block.padding!r}. Set residual to false or padding to 'same'."
            )
    return network.blocks


def _side_after(block: BlockConfig, side: int) -> int:
    pool_stride = block.pool_stride or block.pool_size

    def pooled(side: int) -> int:
        if block.pooling == "none":
            return side
        if block.pool_padding == "same":
            return -(-side // pool_stride)
        return (side - block.pool_size) // pool_stride + 1

    for index in range(block.convolutions):
        stride = block.stride if index == 0 else 1
        side = (
            -(-side // stride) if block.padding == "same" else (side - block.kernel) // stride + 1
        )
        if index == 0 and block.pooling_place == "inside":
            side = pooled(side)
        if side < 1:
            return 0
    return pooled(side) if block.pooling_place == "end" else side


def build_network(
    network: NetworkConfig, input_shape: Shape, classes: int, seed: int | None = None
) -> Any:
    """Build an uncompiled `keras.Model`: uint8 images `(n, *input_shape)` to probabilities.

    Blocks that do not fit `input_shape` are left out, from the end (see `fitting_blocks`). The
    output is float32 `(n, classes)`; rows sum to 1.

    Args:
        network: What to build.
        input_shape: (height, width, channels) of the images.
        classes: How many there are.
        seed: Of the first weights and of dropout. Without one, Keras draws from Python's global
            generator, from which any other thread may draw too.

    Raises:
        DefinitionError: the first block does not fit.
        ModelError: the backbone's weights are not there.
    """
    seeds = _seeds(seed)
    inputs = keras.Input(input_shape, dtype="uint8", name="image")
    if network.backbone:
        x = _add_backbone(inputs, network)
    else:
        x = _add_blocks(inputs, network, seeds)
    x = _add_head(x, network, seeds)
    if network.logit_scale != 1:
        x = layers.Rescaling(network.logit_scale, name="logit_scale")(x)
    outputs = layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=_initialiser("glorot_uniform", seeds),
        dtype="float32",
        name="probabilities",
    )(x)
    return keras.Model(inputs, outputs, name="cnn")


def _add_backbone(inputs: Any, network: NetworkConfig) -> Any:
    x = layers.Rescaling(1.0, name="pixels")(inputs)
    if network.resize_to:
        x = layers.Resizing(network.resize_to, network.resize_to, name="resize")(x)
    x = backbones.prepare(x, network.backbone)
    own = backbones.build(
        network.backbone,
        network.backbone_weights,
        (*x.shape[1:3], 3),
        trained=network.fine_tuned,
    )
    return own(x, training=False)  # what its batch normalisations know of images stays


def _add_blocks(inputs: Any, network: NetworkConfig, seeds: Iterator[int | None]) -> Any:
    blocks = fitting_blocks(network, inputs.shape[1:])
    scale = [1 / (255 * deviation) for deviation in network.pixel_deviation]
    offset = [
        -mean / deviation
        for mean, deviation in zip(network.pixel_mean, network.pixel_deviation, strict=True)
    ]
    x = layers.Rescaling(
        scale if len(scale) > 1 else scale[0],
        offset if len(offset) > 1 else offset[0],
        name="rescale",
    )(inputs)
    missing = [max(0, network.pad_to - side) for side in inputs.shape[1:3]]
    if any(missing):
        borders = tuple((side // 2, side - side // 2) for side in missing)
        x = layers.ZeroPadding2D(borders, name="pad")(x)
    if network.whitening:
        whitening = layers.Conv2D(8 * x.shape[-1], 2, name="whitening")
        x = layers.Activation(network.activation, name="whitened")(whitening(x))
        whitening.kernel.trainable = False
    for index, block in enumerate(blocks, 1):
        if isinstance(block, InceptionConfig):
            x = _add_inception(x, network, block, f"block{index}", seeds)
        else:
            x = _add_block(x, network, block, f"block{index}", seeds)
    return x


def whiten(model: Any, images: npt.NDArray[np.uint8]) -> None:
    """Set the filters of a model's whitening, if it has one, from training images."""
    found = [layer for layer in model.layers if layer.name == "whitening"]
    for layer in found:
        before = keras.Model(model.input, layer.input)
        pixels = images.shape[1] * images.shape[2]
        few = min(WHITENED, WHITENED * 32 * 32 // pixels)  # of photographs: they need gigabytes
        maps = ops.convert_to_numpy(before(images[: max(few, 1)]))
        patches = np.lib.stride_tricks.sliding_window_view(maps, (2, 2), (1, 2))
        # (n, row, column, channel, 2, 2) -> (patches, 2 * 2 * channels), as a kernel is laid out
        flat = np.moveaxis(patches, 3, 5).reshape(-1, 4 * maps.shape[-1])
        values, vectors = np.linalg.eigh(np.cov(flat.astype(np.float64), rowvar=False))
        filters = (vectors / np.sqrt(values + 5e-4)).reshape(2, 2, maps.shape[-1], -1)
        layer.kernel.assign(np.concatenate([filters, -filters], axis=-1).astype(np.float32))


def averaged(model: Any, views: int) -> Any:
    """Return a model whose predictions are the mean of `model`'s over views of each image.

    Args:
        model: As `build_network` returns it.
        views: As `NetworkConfig.views` says.
    """
    if views == 1:
        return model
    image = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
    middle = [model(image), model(ops.flip(image, axis=2))]
    mean = layers.Average(name="views")(middle)
    if views == 6:
        edges = [(0, 0), (1, 1), (1, 1), (0, 0)]
        wide = ops.pad(image, edges, mode="reflect")
        moved = [layers.Cropping2D(cut)(wide) for cut in (((0, 2), (0, 2)), ((2, 0), (2, 0)))]
        outer = [model(x) for one in moved for x in (one, ops.flip(one, axis=2))]
        mean = layers.Average(name="all_views")([mean, layers.Average(name="moved_views")(outer)])
    return keras.Model(image, mean, name="cnn")


def _seeds(seed: int | None) -> Iterator[int | None]:
    rng = np.random.default_rng(seed)
    while True:
        yield None if seed is None else int(rng.integers(1, 2**31))


def _initialiser(name: str, seeds: Iterator[int | None]) -> Any:
    plain = keras.initializers.get(name)
    config = plain.get_config()
    return type(plain).from_config({**config, "seed": next(seeds)} if "seed" in config else config)


def _add_block(
    x: Any, network: NetworkConfig, block: BlockConfig, name: str, seeds: Iterator[int | None]
) -> Any:
    def pool(x: Any, name: str = f"{name}_pool") -> Any:
        kinds = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
        if block.pooling == "none":
            return x
        found = kinds[block.pooling](
            block.pool_size, block.pool_stride or None, padding=block.pool_padding, name=name
        )
        return found(x)

    shortcut = x
    for index in range(block.convolutions):
        unit = f"{name}_conv{index + 1}"
        convolution = layers.Conv2D(
            block.filters,
            block.kernel,
            strides=block.stride if index == 0 else 1,
            padding=block.padding,
            groups=block.groups,
            use_bias=network.use_bias,
            kernel_initializer=_initialiser(network.initialiser, seeds),
            name=unit,
        )
        x = convolution(x)
        if network.identity:
            _pass_on(convolution)
        if index == 0 and block.pooling_place == "inside":
            x = pool(x)
        if block.normalisation == "batch" and block.normalisation_place == "before":
            x = _normalise(x, network, f"{unit}_norm")
        x = layers.Activation(network.activation, name=f"{unit}_{network.activation}")(x)
        if block.normalisation == "batch" and block.normalisation_place == "after":
            x = _normalise(x, network, f"{unit}_norm")
    if block.residual:
        if shortcut.shape[1:] != x.shape[1:]:
            if block.stride > 1:
                # not as the convolution's own stride: TensorFlow 2.21 with oneDNN writes past its
                # memory in the gradient of a strided convolution of 1x1 (tests/test_network.py)
                kept = layers.MaxPooling2D(1, block.stride, name=f"{name}_shortcut_stride")
                shortcut = kept(shortcut)
            shortcut = layers.Conv2D(
                block.filters,
                1,
                use_bias=network.use_bias,
                kernel_initializer=_initialiser(network.initialiser, seeds),
                name=f"{name}_shortcut",
            )(shortcut)
            if block.pooling_place == "inside":
                shortcut = pool(shortcut, f"{name}_shortcut_pool")
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    if block.pooling_place == "end":
        x = pool(x)
    if block.dropout:
        x = layers.Dropout(block.dropout, seed=next(seeds), name=f"{name}_dropout")(x)
    return x


def _add_inception(
    x: Any, network: NetworkConfig, block: InceptionConfig, name: str, seeds: Iterator[int | None]
) -> Any:
    def convolve(x: Any, filters: int, kernel: int, way: str) -> Any:
        return layers.Conv2D(
            filters,
            kernel,
            padding="same",
            activation=network.activation,
            use_bias=network.use_bias,
            kernel_initializer=_initialiser(network.initialiser, seeds),
            name=f"{name}_{way}",
        )(x)

    pooled = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pooled")(x)
    ways = [
        convolve(x, block.ones, 1, "ones"),
        convolve(convolve(x, block.threes[0], 1, "before_threes"), block.threes[1], 3, "threes"),
        convolve(convolve(x, block.fives[0], 1, "before_fives"), block.fives[1], 5, "fives"),
        convolve(pooled, block.pooled, 1, "after_pooled"),
    ]
    x = layers.Concatenate(name=f"{name}_stack")(ways)
    if block.pooling == "max":
        x = layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)
    return x


def _normalise(x: Any, network: NetworkConfig, name: str) -> Any:
    momentum, scale = network.normalisation_momentum, network.normalisation_scale
    return layers.BatchNormalization(momentum=momentum, scale=scale, name=name)(x)


def _pass_on(convolution: Any) -> None:
    """Have the first filters pass their input on; the others stay as they were drawn."""
    kernel = ops.convert_to_numpy(convolution.kernel).copy()
    passed, middle = min(kernel.shape[2:]), kernel.shape[0] // 2
    kernel[..., :passed] = 0
    kernel[middle, middle, range(passed), range(passed)] = 1
    convolution.kernel.assign(kernel)


def _add_head(x: Any, network: NetworkConfig, seeds: Iterator[int | None]) -> Any:
    def drop(x: Any, name: str) -> Any:
        return layers.Dropout(network.head_dropout, seed=next(seeds), name=name)(x)

    heads = {
        "flatten": layers.Flatten,
        "average": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
    }
    x = heads[network.head](name=network.head)(x)
    for index, units in enumerate(network.dense_units, 1):
        x = layers.Dense(
            units,
            activation=network.activation,
            kernel_initializer=_initialiser(network.dense_initialiser, seeds),
            name=f"dense{index}",
        )(x)
        if network.head_normalisation == "batch":
            x = _normalise(x, network, f"dense{index}_norm")
        if network.head_dropout:
            x = drop(x, f"dense{index}_dropout")
    if network.head_dropout and not network.dense_units:
        x = drop(x, "head_dropout")
    return x


def layers_of(model: Any) -> Iterator[Any]:
    """Yield the layers of a model, and those of the models that are among them."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)


def count_flops(model: Any) -> int:
    """Count the floating-point operations of a forward pass over one image.

    A multiplication and an addition are two. Convolutions and dense layers count; what remains
    (biases, normalisation, activations, pooling) is a few per cent and does not.
    """
    flops = 0
    for layer in layers_of(model):
        for kernel in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            if hasattr(layer, kernel):
                places = math.prod(layer.output.shape[1:-1])
                flops += 2 * places * math.prod(getattr(layer, kernel).shape)
    return flops
