"""Speed: the seconds of a network's epoch on this machine, measured, or predicted from some others.

A step's seconds are a sum of what a network computes for it, each part with a fitted weight: a
constant; for each image of the batch its FLOPs, the sizes of all its maps, and whether it is
augmented; and the parameters.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnn_search import backend
from cnn_search.datasets import Dataset, Part
from cnn_search.network import count_flops, layers_of
from cnn_search.optimisation import VALIDATION_BATCH

STEPS, FIRST = 8, 3  # measured; before them, the graph is made and memory is warm
VALIDATED = 1 / 3  # of a training step, for as many images: a pass forward alone


@dataclasses.dataclass(frozen=True)
class Measured:
    """A network that was trained for a few steps, alone on this machine.

    Attributes:
        name: What it is called.
        parameters: How many it has.
        flops: Of one image.
        work: Of a step, see `work_of`.
        step_seconds: Of a training step, the median.
        epoch_seconds: Of one epoch: its training steps and validation.
        begin_seconds: To build the network and its graph, once a trial.
    """

    name: str
    parameters: int
    flops: int
    work: tuple[float, ...]
    step_seconds: float
    epoch_seconds: float
    begin_seconds: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """What the parts of a step take on a machine.

    Attributes:
        weights: Seconds for a unit of each part of `work_of`.
        error: The median relative error of each measured network, predicted from the others.
    """

    weights: tuple[float, ...]
    error: float

    def epoch_seconds(self, model: Any, step: tuple[int, bool], dataset: Dataset) -> float:
        """Predict the seconds of an epoch, with validation; a step as `work_of` has it."""
        seconds = np.dot(self.weights, work_of(model, step))
        images = len(dataset.train.labels) + VALIDATED * len(dataset.validation.labels)
        return float(seconds * images / step[0])


def work_of(model: Any, step: tuple[int, bool]) -> tuple[float, ...]:
    """Return what a training step computes, part by part; in units that are of one size.

    Args:
        model: The network.
        step: How many images it has, and whether they are moved by augmentation.
    """
    batch, moved = step
    maps = sum(math.prod(layer.output.shape[1:]) for layer in layers_of(model))
    parts = (1, batch * count_flops(model) / 1e9, batch * maps / 1e7, batch * moved / 1e3)
    return (*parts, model.count_params() / 1e7)


def fit(measured: Sequence[Measured]) -> Speed:
    """Fit the weights to measured networks; none is below 0, and relative errors count.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(measured) < 2:
        raise ValueError(f"expected two measured networks at least; received {len(measured)}")
    works = np.array([one.work for one in measured])
    seconds = np.array([one.step_seconds for one in measured])
    errors = []
    for number in range(len(measured)):
        rest = np.arange(len(measured)) != number
        predicted = works[number] @ _weights(works[rest], seconds[rest])
        errors.append(abs(predicted / seconds[number] - 1))
    return Speed(tuple(map(float, _weights(works, seconds))), float(np.median(errors)))


def _weights(
    works: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    from scipy.optimize import nnls  # not in every worker's start

    found: npt.NDArray[np.float64] = nnls(works / seconds[:, None], np.ones(len(works)))[0]
    return found


def measure(name: str, space: Any, values: Mapping[str, Any], dataset: Dataset) -> Measured:
    """Measure a configuration: the median of a few training steps, and a part of validation."""
    backend.clear()
    began = time.perf_counter()
    hp = space.hyperparameters(values)
    model = space.build(hp)
    batch, moved = space.step_of(hp)
    few = (FIRST + STEPS) * batch
    images, labels = dataset.train.images[:few], dataset.train.labels[:few]
    epochs = -(-few // len(images))  # of so few images that an epoch has not all those steps
    ticks: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ticks.append(time.perf_counter())
    )
    space.fit(hp, model, images, labels, epochs=epochs, callbacks=[watch], verbose=0)
    took = time.perf_counter() - began
    step = float(np.median(np.diff(ticks)[FIRST - 1 :]))
    whole = step * -(-len(dataset.train.labels) // batch)
    return Measured(
        name,
        model.count_params(),
        count_flops(model),
        work_of(model, (batch, moved)),
        step,
        whole + _validation_seconds(model, dataset.validation),
        max(took - step * len(ticks), 0.0),
    )


def _validation_seconds(model: Any, part: Part) -> float:
    few = part.images[:VALIDATION_BATCH]
    if not len(few):
        return 0.0
    model.predict_on_batch(few)
    began = time.perf_counter()
    model.predict_on_batch(few)
    return (time.perf_counter() - began) * len(part.labels) / len(few)
