"""The probe: what a sweep will take, from a few measured steps of some networks of its space."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cnn_search import backend
from cnn_search.datasets import Dataset
from cnn_search.definition import Definition, OracleTable
from cnn_search.limits import costs_of
from cnn_search.network import count_flops
from cnn_search.oracles import Oracle
from cnn_search.spaces import declared
from cnn_search.speed import Measured, measure
from cnn_search.subject import baseline_values, searched, setup_of
from cnn_search.training import make_space

DRAWN = 24  # configurations; of these, some that are evenly spread by their FLOPs are measured
MEGABYTES_A_TRIAL = 1.3  # pictures, curves and rows, beside weights: 580 trials of digits, 755 MB


def probe(definition: Definition, dataset: Dataset, count: int = 8) -> list[Measured]:
    """Measure the tutorial's model, and `count` networks of the space from small to large.

    Raises:
        DefinitionError: the space is not what the definition says.
    """
    space = make_space(setup_of(definition, Path("unused")), dataset)
    name, book = next(iter(baseline_values(space, definition.baselines).items()))
    drawn = _draw(definition, space)
    keras.config.set_dtype_policy(definition.training.precision)  # as each trial does
    chosen = np.unique(np.linspace(0, len(drawn) - 1, count).round().astype(int))
    found = [measure(name, space, book, dataset)]
    for number, index in enumerate(chosen, start=1):
        found.append(measure(f"network {number}", space, drawn[index], dataset))
    return found


def _draw(definition: Definition, space: Any) -> list[dict[str, Any]]:
    """Return configurations of the space, drawn at random, the cheapest first."""
    oracle = Oracle(
        OracleTable(kind="random"),
        searched(definition, declared(space)),
        objective=definition.objective,
        epochs=definition.training.epochs,
        trials=DRAWN,
        seed=definition.seed,
    )
    drawn = []
    for number in range(DRAWN):
        if (ask := oracle.ask(number)) is not None:
            try:
                model = space.build(space.hyperparameters(ask.values))
            except Exception:  # in a sweep it would be a trial that failed
                continue
            drawn.append((count_flops(model), number, ask.values))
            backend.clear()
    return [values for _, _, values in sorted(drawn, key=lambda row: row[:2])]


def seconds_of(measured: list[Measured], trials: int, epochs: int, full: int) -> float:
    """Return how long so many trials with so many epochs in all take, one after the other.

    The tutorial's model has `full` epochs; the others are spread evenly over the sizes.
    """
    book, *others = measured
    others = others or [book]
    begin = statistics.mean(one.begin_seconds for one in others)
    epoch = statistics.mean(one.epoch_seconds for one in others)
    rest = begin * (trials - 1) + epoch * (epochs - full)
    return book.begin_seconds + book.epoch_seconds * full + rest


def megabytes_of(measured: list[Measured], trials: int, keep_models: int) -> float:
    """Return about how much of the disk a sweep takes: its folder and MLflow's, local both."""
    largest = max(costs_of(one.parameters, one.flops)["megabytes"] for one in measured)
    # the weights that are kept, the registered one, and a checkpoint with the optimiser's moments
    return trials * MEGABYTES_A_TRIAL + (keep_models + 1 + 4) * largest
