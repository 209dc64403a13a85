"""Optimisation: a TrainingConfig compiles a model: optimiser, schedule, loss, metrics, targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

VALIDATION_BATCH = 512  # images that are judged at a time


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is optimised.

    Attributes:
        optimiser: "adam", "sgd" (Nesterov momentum) or "rmsprop".
        learning_rate: The highest rate that the schedule reaches.
        schedule: By step, over the sweep's full epochs: "constant"; "cosine" (linear warm-up, then
            half a cosine to 0); "one_cycle" (from 1/25 to the peak, half a cosine to 0; Smith and
            Topin 2017, arXiv:1708.07120); "triangular" (from 1/5 to the peak, linearly to 0.07).
        warmup: Share of all steps until the peak, in [0, 1).
        momentum: Of "sgd".
        weight_decay: Decoupled from the gradient (Loshchilov and Hutter 2017, arXiv:1711.05101),
            as a share of the weight times the learning rate; biases and normalisation have none.
        label_smoothing: Share of each training label spread over all classes.
        bias_rate: The offsets of batch normalisations learn so many times faster (Page 2018, "How
            to train your ResNet"; Jordan 2024, arXiv:2404.00498).
        averaging: Momentum of an exponential moving average of the weights, which is what gets
            validated and kept; 0 for none.
        lookahead: After each so many steps training goes on from that average, whose momentum then
            grows from 0 to `averaging`, by the share of the steps to the .6; 0 for never (Zhang et
            al. 2019, arXiv:1907.08610; Jordan 2024).
        batch_size: Images a step; the last batch of an epoch may be smaller.
    """

    optimiser: Literal["adam", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "one_cycle", "triangular"] = "constant"
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    bias_rate: float = 1.0
    averaging: float = 0.0
    lookahead: int = 0
    batch_size: int = 64


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """From `start` up to the peak at `warmup`, then down to `end`; all as shares of the whole."""

    # start and end as shares of the peak, the warm-up if none is given, and the way down
    SHAPES = {
        "cosine": (0.0, 0.0, 0.0, "cosine"),
        "one_cycle": (0.04, 0.0, 0.3, "cosine"),
        "triangular": (0.2, 0.07, 0.23, "linear"),
    }

    def __init__(self, kind: str, peak: float, steps: int, warmup: float = 0.0) -> None:
        self.kind, self.peak, self.steps = kind, peak, steps
        self.start, self.end, default, self.way = self.SHAPES[kind]
        self.warmup = warmup or default

    def __call__(self, step: Any) -> Any:
        share = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        up = self.start + (1 - self.start) * share / max(self.warmup, 1e-9)
        down = (share - self.warmup) / (1 - self.warmup)
        if self.way == "cosine":
            down = (1 - ops.cos(math.pi * down)) / 2
        return self.peak * ops.where(share < self.warmup, up, 1 + (self.end - 1) * down)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, as Keras wants."""
        return {"kind": self.kind, "peak": self.peak, "steps": self.steps, "warmup": self.warmup}


class ConfusionMetric(keras.metrics.Metric):
    """Balanced accuracy (mean recall of the classes) or macro F1, from a confusion matrix."""

    def __init__(self, name: Literal["balanced_accuracy", "macro_f1"], classes: int) -> None:
        super().__init__(name=name)
        self.classes = classes
        self.matrix = self.add_weight(shape=(classes, classes), initializer="zeros", name="matrix")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch: labels `(b,)`, `(b, 1)` or one-hot, probabilities `(b, classes)`."""
        if len(y_true.shape) == 2 and y_true.shape[1] == self.classes:
            y_true = ops.argmax(y_true, axis=1)
        true = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), self.classes)
        predicted = ops.one_hot(ops.argmax(y_pred, axis=1), self.classes)
        self.matrix.assign_add(ops.matmul(ops.transpose(true), predicted))

    def result(self) -> Any:
        """Return the mean over the classes; a class never seen nor predicted counts as 0."""
        hits, true = ops.diagonal(self.matrix), ops.sum(self.matrix, axis=1)
        if self.name == "balanced_accuracy":
            return ops.mean(ops.divide_no_nan(hits, true))
        return ops.mean(ops.divide_no_nan(2 * hits, true + ops.sum(self.matrix, axis=0)))


def compile_model(
    model: Any, config: TrainingConfig, *, steps: int, classes: int, metrics: list[str]
) -> None:
    """Compile `model` for `config`; a schedule spans `steps`, those of all epochs."""
    rate: Any = config.learning_rate
    if config.schedule != "constant":
        rate = Schedule(config.schedule, config.learning_rate, steps, config.warmup)
    common: dict[str, Any] = {"weight_decay": config.weight_decay or None}
    if config.averaging:
        common |= {"use_ema": True, "ema_momentum": config.averaging}
        common["ema_overwrite_frequency"] = config.lookahead or None
    if config.optimiser == "sgd":
        common |= {"momentum": config.momentum, "nesterov": config.momentum > 0}
    kinds = {
        "adam": keras.optimizers.Adam,
        "sgd": keras.optimizers.SGD,
        "rmsprop": keras.optimizers.RMSprop,
    }
    kind = kinds[config.optimiser]
    if config.bias_rate != 1:
        kind = _with_bias_rate(kind, config.bias_rate)
    if config.lookahead:
        kind = _with_growing_average(kind, steps)
    optimiser = kind(rate, **common)
    if config.weight_decay:
        optimiser.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    names = [name.removeprefix("val_") for name in metrics]
    # a metric, not the text "accuracy", of which Keras would make one in the first training step
    if config.label_smoothing:  # one-hot, as `targets_of` gives them
        loss, accuracy = "categorical_crossentropy", keras.metrics.CategoricalAccuracy
    else:
        loss, accuracy = "sparse_categorical_crossentropy", keras.metrics.SparseCategoricalAccuracy
    model.compile(
        optimizer=optimiser,
        loss=loss,
        metrics=[accuracy("accuracy")]
        + [ConfusionMetric(n, classes) for n in names if n in ("balanced_accuracy", "macro_f1")],  # type: ignore[arg-type]
    )


def _with_bias_rate(kind: Any, rate: float) -> Any:
    """Return a class of optimiser whose rate for the offsets of batch normalisations is higher."""

    class Optimiser(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            known = self._trainable_variables[self._get_variable_index(variable)]
            factor = rate if known.name == "beta" else 1.0
            super().update_step(gradient, variable, learning_rate * factor)

    return Optimiser


def _with_growing_average(kind: Any, steps: int) -> Any:
    """Return a class of optimiser whose moving average forgets less with each of `steps`."""

    class Optimiser(kind):
        @property
        def ema_momentum(self) -> Any:
            share = ops.minimum(ops.cast(self.iterations, "float32") / steps, 1.0)
            return self.highest_momentum * share**0.6

        @ema_momentum.setter
        def ema_momentum(self, momentum: float) -> None:
            self.highest_momentum = momentum

    return Optimiser


def targets_of(
    labels: npt.NDArray[np.int64], config: TrainingConfig, classes: int, *, smooth: bool = True
) -> npt.NDArray[Any]:
    """Return labels as the loss wants them: as they are, or one-hot where they get smoothed.

    Validation labels stay sharp (`smooth=False`), so that validation losses can be compared.
    """
    if not config.label_smoothing:
        return labels
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    share = config.label_smoothing if smooth else 0.0
    return one_hot * np.float32(1 - share) + np.float32(share / classes)
