"""The probe: what a sweep will take, from a few measured steps of networks of three sizes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cnn_search.datasets import Dataset, Part
from cnn_search.definition import Definition, OracleTable
from cnn_search.limits import costs_of
from cnn_search.network import count_flops
from cnn_search.oracles import Oracle
from cnn_search.search import baseline_values, searched, setup_of
from cnn_search.spaces import declared
from cnn_search.training import VALIDATION_BATCH, make_space

SAMPLES = 12  # configurations drawn; the middle one of each third is measured
STEPS, FIRST = 8, 3  # measured; before them, the graph is made and memory is warm
MEGABYTES_A_TRIAL = 1.3  # pictures, curves and rows, beside weights: 580 trials of digits, 755 MB


@dataclasses.dataclass(frozen=True)
class Size:
    """Networks of about one size.

    Attributes:
        name: "the tutorial's model", "small", "middle", "large".
        parameters: Of the measured network.
        flops: Of one image.
        epoch_seconds: Of one epoch on this machine, alone: its training steps and validation.
        begin_seconds: To build the network and its graph, once a trial.
    """

    name: str
    parameters: int
    flops: int
    epoch_seconds: float
    begin_seconds: float


def probe(definition: Definition, dataset: Dataset) -> list[Size]:
    """Measure the tutorial's model, and one each of small, middle and large networks of the space.

    Raises:
        DefinitionError: the space is not what the definition says.
    """
    setup = setup_of(definition, Path("unused"))
    space = make_space(setup, dataset)
    oracle = Oracle(
        OracleTable(kind="random"),
        searched(definition, declared(space)),
        objective=definition.objective,
        epochs=definition.training.epochs,
        trials=SAMPLES,
        seed=definition.seed,
    )
    name, book = next(iter(baseline_values(space, definition.baselines).items()))
    drawn = []
    for number in range(SAMPLES):
        if (ask := oracle.ask(number)) is not None:
            model = space.build(space.hyperparameters(ask.values))
            drawn.append((count_flops(model), ask.values))
            keras.utils.clear_session()
    drawn.sort(key=lambda pair: pair[0])
    thirds = np.array_split(np.arange(len(drawn)), 3)
    sizes = [measure(name, space, book, dataset)]
    for title, third in zip(("small", "middle", "large"), thirds, strict=True):
        if len(third):
            values = drawn[third[len(third) // 2]][1]
            sizes.append(measure(title, space, values, dataset))
    return sizes


def measure(name: str, space: Any, values: Mapping[str, Any], dataset: Dataset) -> Size:
    """Measure a configuration: the median of a few training steps, and a part of validation."""
    keras.utils.clear_session()
    began = time.perf_counter()
    hp = space.hyperparameters(values)
    model = space.build(hp)
    batch = space.configure(hp).training.batch_size
    few = (FIRST + STEPS) * batch
    images, labels = dataset.train.images[:few], dataset.train.labels[:few]
    ticks: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ticks.append(time.perf_counter())
    )
    space.fit(hp, model, images, labels, epochs=1, callbacks=[watch], verbose=0)
    took = time.perf_counter() - began
    each = np.diff(ticks)
    step = float(np.median(each[FIRST - 1 :] if len(each) >= FIRST else each)) if len(each) else 0.0
    whole = step * -(-len(dataset.train.labels) // batch)
    return Size(
        name,
        model.count_params(),
        count_flops(model),
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


def seconds_of(sizes: list[Size], trials: int, epochs: int, full: int) -> float:
    """Return how long so many trials with so many epochs in all take, one after the other.

    The tutorial's model has `full` epochs; the others are spread evenly over the sizes.
    """
    book, *others = sizes
    others = others or [book]
    begin = statistics.mean(size.begin_seconds for size in others)
    epoch = statistics.mean(size.epoch_seconds for size in others)
    rest = begin * (trials - 1) + epoch * (epochs - full)
    return book.begin_seconds + book.epoch_seconds * full + rest


def megabytes_of(sizes: list[Size], trials: int, keep_models: int) -> float:
    """Return about how much of the disk a sweep takes: its folder and MLflow's, local both."""
    largest = max(costs_of(size.parameters, size.flops)["megabytes"] for size in sizes)
    # the weights that are kept, the registered one, and a checkpoint with the optimiser's moments
    return trials * MEGABYTES_A_TRIAL + (keep_models + 1 + 4) * largest
