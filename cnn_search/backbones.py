"""Backbones: networks of `keras.applications` that were trained on ImageNet, to build on.

Each gets pixels as it was trained on. Their weights come from Keras's cache, which downloads them
once, or from a file.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cnn_search.errors import ModelError, first_line

IMAGENET = "imagenet"  # in place of a file: Keras's own
SIDE = 224  # pixels, of the images that they classify
MEAN = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red, in 0..255


@dataclass(frozen=True)
class Backbone:
    """A network of `keras.applications`.

    Attributes:
        function: What makes it there.
        pixels: What it wants: "caffe", blue first, less their mean; "torch", standardised by
            channel; "raw", from 0 to 255.
    """

    function: str
    pixels: Literal["caffe", "torch", "raw"]


KNOWN = {
    "vgg16": Backbone("VGG16", "caffe"),
    "resnet50": Backbone("ResNet50", "caffe"),
    "densenet121": Backbone("DenseNet121", "torch"),
    "mobilenetv3large": Backbone("MobileNetV3Large", "raw"),
    "efficientnetv2b0": Backbone("EfficientNetV2B0", "raw"),
}


def build(
    name: str, weights: str, shape: tuple[int, int, int], *, top: bool = False, trained: int = 0
) -> Any:
    """Return a backbone as a `keras.Model` of float32 images `(n, *shape)`.

    Args:
        name: A key of `KNOWN`.
        weights: "imagenet", or the path of a file that `keras.Model.save_weights` wrote.
        shape: (height, width, 3) of the images.
        top: With its own dense layers, which tell ImageNet's 1,000 classes.
        trained: So many of its last convolutions can be trained; nothing else of it can.

    Raises:
        ModelError: there are no such weights, here or to be downloaded, or they are of another.
    """
    import keras

    make = getattr(keras.applications, KNOWN[name].function)
    options = {"include_top": top, "input_shape": shape}
    what = f"{name}: expected its weights{'' if top else ' without the top'}"
    try:
        with _quiet(strict=weights != IMAGENET):
            model = make(weights=weights, **options)
    except Exception as error:  # urllib's, h5py's, Keras's own
        if isinstance(error, ValueError) and "size" in str(error):
            raise ModelError(
                f"{name}: expected larger images; received {first_line(error)}. Set resize_to."
            ) from None
        if weights == IMAGENET:
            raise _not_cached(what, error) from None
        said = first_line(error) if Path(weights).is_file() else "no such file"
        if isinstance(error, Warning):
            said = "those of another network"
        raise ModelError(f"{what} in {weights}; received {said}. Name another file.") from None
    convolutions = [layer for layer in model.layers if hasattr(layer, "kernel")]
    model.trainable = True
    for layer in model.layers:
        layer.trainable = layer in convolutions[max(0, len(convolutions) - trained) :]
    return model


def prepare(x: Any, name: str) -> Any:
    """Return pixels in 0..255 `(n, height, width, 1 or 3)` as a backbone wants them, in colour."""
    from keras import layers, ops

    if x.shape[-1] == 1:
        x = layers.Concatenate(name="colours")([x, x, x])
    pixels = KNOWN[name].pixels
    if pixels == "caffe":
        x = layers.Rescaling(1.0, [-mean for mean in MEAN], name="centre")(ops.flip(x, axis=-1))
    if pixels == "torch":
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        scale, offset = (1 / (255 * deviation)).tolist(), (-mean / deviation).tolist()
        x = layers.Rescaling(scale, offset, name="standardise")(x)
    return x


def classifier(name: str) -> tuple[Any, tuple[str, ...]]:
    """Return a backbone with its own top, and ImageNet's 1,000 class names in its order.

    Returns:
        A `keras.Model`: uint8 images `(n, 224, 224, 3)` to float32 probabilities; the names.

    Raises:
        ModelError: weights or names are not there.
    """
    import keras

    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    whole = build(name, IMAGENET, (SIDE, SIDE, 3), top=True)
    x = prepare(keras.layers.Rescaling(1.0, name="pixels")(image), name)
    model = keras.Model(image, whole(x, training=False), name="cnn")
    decode = keras.applications.imagenet_utils.decode_predictions
    try:
        with _quiet(strict=False):
            [falling] = decode(np.arange(1000, dtype=np.float32)[None], top=1000)
    except Exception as error:
        raise _not_cached(f"{name}: expected the names of its classes", error) from None
    return model, tuple(label for _, label, _ in reversed(falling))


def _not_cached(what: str, error: Exception) -> ModelError:
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    return ModelError(
        f"{what} in Keras's cache, {cache}, or a network to download them by; received "
        f"{first_line(error)}. Put the file of this name there."
    )


@contextlib.contextmanager
def _quiet(strict: bool) -> Iterator[None]:
    """Have a download say what it does on stderr, and a file that does not fit be an error.

    Args:
        strict: Keras only warns of weights that a file does not have.
    """
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if strict:  # of its modules alone: another thread's warnings would be errors too
            warnings.filterwarnings("error", module=r"keras\.src\.(legacy\.)?saving")
        yield
