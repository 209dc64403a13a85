"""Explanation: how much each pixel of an image speaks for a class, by integrated gradients.

Sundararajan, Taly and Yan 2017, arXiv:1703.01365: the gradient of the class's probability by a
pixel, averaged on the way from a black image to this one, times the pixel.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnn_search import backend

STEPS = 64  # on the way; the parts then sum up to the change in probability within a per cent or so


def attributions(
    model: Any, image: npt.NDArray[np.uint8], index: int, steps: int = STEPS
) -> npt.NDArray[np.float32]:
    """Return what each pixel adds to the probability of class `index`, float32 (height, width).

    They sum up to the probability of the image less that of a black one. A model that predicts
    from several views of an image is explained by its prediction from the image itself.

    Args:
        model: As `network.averaged` returns it.
        image: uint8 (height, width, channels).
        index: Of the class.
        steps: How many images on the way.
    """
    names = [layer.name for layer in model.layers]
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    single = inner[0] if "views" in names else model
    # the same layers behind an input that has a gradient, which whole numbers have not
    smooth = keras.models.clone_model(single, keras.Input(image.shape, dtype="float32"))
    smooth.set_weights(single.get_weights())
    shares = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    way = shares[:, None, None, None] * image.astype(np.float32)
    # a few at a time: of VGG16 each takes 60 MB
    some = [backend.gradients(smooth, part, index) for part in np.split(way, range(8, steps, 8))]
    mean = np.concatenate(some).mean(axis=0)
    parts: npt.NDArray[np.float32] = (mean * image).sum(axis=-1)
    return parts
