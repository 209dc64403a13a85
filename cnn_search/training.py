"""Training: a space, values, a seed and a fidelity go in; a trained model and its history come out.

Knows no MLflow and no oracle. One call of `train` is one attempt at a trial; what happens in it
leaves as events ("start", "epoch", "done", "stopped", "failed") through the given `emit`.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import math
import os
import sys
import time
import traceback
import types
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import psutil

from cnn_search import backend
from cnn_search.augmentation import AugmentationConfig
from cnn_search.checkpoint import State, load_state, save_state
from cnn_search.crash import recorded
from cnn_search.datasets import Dataset, Part
from cnn_search.errors import DefinitionError
from cnn_search.hypermodels import adopt
from cnn_search.limits import Limit, costs_of, violations
from cnn_search.network import NetworkConfig, count_flops
from cnn_search.optimisation import VALIDATION_BATCH, TrainingConfig
from cnn_search.speed import Speed

Values = Mapping[str, Any]
Epoch = dict[str, float]
Stop = Literal["", "epoch", "now"]
SHOWN_IMAGES = 25
CRASH = "crash.txt"  # in a trial's folder, while it trains and after a crash

OBJECTIVES: dict[str, Literal["min", "max"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "val_balanced_accuracy": "max",
    "val_macro_f1": "max",
}


@dataclass(frozen=True)
class Configuration:
    """Everything that determines a trial but its seed and fidelity."""

    network: NetworkConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class Protocol:
    """What is the same for every trial of a sweep, and never searched.

    Attributes:
        epochs: The full number of epochs, over which a schedule spans.
        patience: Epochs without a better `monitor` after which training ends; 0 for never. Holds
            for constant learning rates only: stopping would cut any other schedule short.
        monitor: "val_loss" or "val_accuracy".
        weights: Which weights a trial keeps, and is scored by: those of its "best" epoch by the
            objective, or of its "last".
    """

    epochs: int
    patience: int = 0
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"
    weights: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class Baseline:
    """A tutorial's model: its configuration, how the tutorial trains it, and what it printed.

    Attributes:
        configuration: The model, to the parameter.
        protocol: The tutorial's own way to train.
        parameters: Of the built model, all and trainable, at the tutorial's own image size; None
            where the size is the user's.
        validation: What validates in the tutorial: the "first_tenth" of the training part, or
            nothing ("none").
        test_accuracy: What the tutorial printed, in per cent; None if nothing.
        published: The published result in words.
        tutorial: Where it comes from, as docs/tutorials.md names it.
    """

    configuration: Configuration
    protocol: Protocol
    parameters: tuple[int, int] | None
    tutorial: str
    published: str = "none"
    test_accuracy: float | None = None
    validation: Literal["first_tenth", "none"] = "none"


@dataclass(frozen=True)
class Task:
    """One attempt at a trial: strings and numbers only, so that it travels to any worker.

    Attributes:
        trial, attempt: Which one, both counted from 0 and 1.
        values: Hyperparameter values by name.
        seed: At least 1; equal seeds give equal curves on the same machine and threads.
        epochs: Its fidelity: training ends after this many epochs, counted from the first one.
        parent: The trial whose last state this one goes on from, or None.
        recorded: How many of its epochs are on record; what a checkpoint has beyond them (a kill
            came between the two) is emitted again. None: nothing is.
        limited: It is not trained if its network costs more than `Setup.limits` allow.
    """

    trial: int
    attempt: int
    values: Values
    seed: int
    epochs: int
    parent: int | None = None
    recorded: int | None = None
    limited: bool = False


@dataclass(frozen=True)
class Setup:
    """What all trials of a sweep share.

    Attributes:
        space: Name or reference of the space (see `find_space`).
        protocol: Epochs, early stopping, weights kept.
        folder: The sweep's folder; each trial has its own below `trials/`.
        objective: A key of `OBJECTIVES`.
        class_weights: Weigh each class by the inverse of its share of the training images.
        precision: Keras's policy for training: "float32" or "mixed_bfloat16".
        checkpoint_seconds: An epoch leaves a checkpoint if the last one is older than this.
        keep_state: Leave a checkpoint at the end too, for trials that go on from it.
        both_weights: Leave the weights that `protocol` does not keep as well, beside the model.
        limits: Of what a network costs, as "<= 500_000".
        speed: What predicts the seconds of an epoch, if a limit needs it.
    """

    space: str
    protocol: Protocol
    folder: Path
    objective: str = "val_accuracy"
    class_weights: bool = False
    precision: str = "float32"
    checkpoint_seconds: float = 30.0
    keep_state: bool = False
    both_weights: bool = False
    limits: Mapping[Limit, str] = field(default_factory=dict)
    speed: Speed | None = None

    def trial_folder(self, trial: int) -> Path:
        """Return the folder of a trial's files."""
        return self.folder / "trials" / f"{trial:04d}"


class Diverged(Exception):
    """A loss or metric became NaN or infinite."""


class Unbuildable(Exception):
    """A configuration does not give a model."""


class Stopped(Exception):
    """Training was told to stop, and can go on from its last checkpoint."""


def find_space(reference: str) -> Any:
    """Return the class of a space: "cifar10", "package.module:Class", or "file.py:Class".

    Or a hypermodel, or a function, of the same name (see `hypermodels`).

    Raises:
        DefinitionError: no such module or class.
    """
    module, _, name = reference.rpartition(":")
    if not module or not name.isidentifier():  # no class is named; the colon is a drive's, or none
        module, name = reference, ""
    own = module if name or "." in module else f"search_spaces.{module}"
    try:
        found = _load_file(Path(module)) if module.endswith(".py") else importlib.import_module(own)
        return getattr(found, name or "Space")
    except Exception as error:  # a user's own module may raise anything
        raise DefinitionError(
            f"space: expected the name of a file in search_spaces/, 'package.module:Class' or "
            f"'file.py:Class'; received {reference!r} ({type(error).__name__}: {error}). Correct "
            "it, or `search_space` in the sweep's TOML file."
        ) from None


def _load_file(file: Path) -> Any:
    """Return the module of a file; one of the same path and text is loaded once."""
    text = file.read_bytes()
    name = f"cnn_search_space_{zlib.crc32(str(file.resolve()).encode() + text):08x}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        sys.modules[name] = module
        try:
            # not by an importer, whose bytecode is that of an older text of the same second
            exec(compile(text, file, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def make_space(setup: Setup, dataset: Dataset, seed: int = 1) -> Any:
    """Return the sweep's space, made for this data set, with everything that is not searched."""
    space = find_space(setup.space)
    if not hasattr(space, "baseline_values"):
        space = adopt(space, setup.space)
    return space(
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        train_images=len(dataset.train.labels),
        protocol=setup.protocol,
        metrics=[setup.objective],
        class_weights=_weights_of(dataset.train, dataset.classes) if setup.class_weights else None,
        seed=seed,
    )


def _weights_of(part: Part, classes: int) -> npt.NDArray[np.float32]:
    counts = np.bincount(part.labels, minlength=classes)
    return (len(part.labels) / (classes * counts)).astype(np.float32)


def train(
    task: Task,
    setup: Setup,
    dataset: Dataset,
    emit: Callable[..., None],
    stop: Callable[[], Stop] = lambda: "",
) -> None:
    """Train one attempt at a trial, and emit what happens; raises nothing.

    Args:
        task: Which trial, with which values, seed and fidelity.
        setup: What all trials of the sweep share.
        dataset: Trained on `train`, validated on `validation`; `test` is never touched.
        emit: Called with the kind of an event and its fields. An "epoch" is emitted after its
            checkpoint, if it leaves one, is on the disk.
        stop: Asked after every batch: "now" stops there, "epoch" after the running epoch.
    """
    emit("start", **backend.describe())
    folder = setup.trial_folder(task.trial)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with recorded(folder / CRASH):
            _train(task, setup, dataset, emit, stop)
    except Stopped:
        emit("stopped")
    except Exception as error:
        if _is_disk_full(error):
            emit("stopped", reason="disk")
            return
        reason, message = _classify(error)
        emit("failed", reason=reason, message=message, traceback=traceback.format_exc())


def _classify(error: Exception) -> tuple[str, str]:
    """Return the class of a failure and what it says, in one line."""
    if isinstance(error, Diverged):
        return "diverged", str(error)
    root = error.__cause__ if isinstance(error, Unbuildable) else error
    said = f"{type(root).__name__}: {root}".strip().splitlines()[0]
    if isinstance(root, MemoryError) or type(root).__name__ == "ResourceExhaustedError":
        return "memory", said
    return "build" if isinstance(error, Unbuildable) else "error", said


def _is_disk_full(error: BaseException | None) -> bool:
    """Return whether the disk or a quota is at the root of an error; h5py has no errno."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _train(
    task: Task,
    setup: Setup,
    dataset: Dataset,
    emit: Callable[..., None],
    stop: Callable[[], Stop],
) -> None:
    backend.clear()
    keras.utils.set_random_seed(task.seed)
    keras.config.set_dtype_policy(setup.precision)
    space = make_space(setup, dataset, task.seed)
    hp = space.hyperparameters(task.values)
    try:
        model = space.build(hp)
    except Exception as error:
        raise Unbuildable(f"{type(error).__name__}: {error}") from error
    costs = costs_of(model.count_params(), space.views_of(hp) * count_flops(model))
    if setup.speed:
        costs["epoch_seconds"] = setup.speed.epoch_seconds(model, space.step_of(hp), dataset)
    if task.limited and (broken := violations(costs, setup.limits)):
        said = [f"{costs[name]:,.6g} {name}, allowed: {setup.limits[name]}" for name in broken]
        emit("refused", costs=costs, message=", ".join(said))
        return
    folder = setup.trial_folder(task.trial)
    state = State()
    for saved in (task.trial, task.parent):
        if saved is not None and not state.history:
            state = load_state(setup.trial_folder(saved) / "checkpoint.npz", model)
    if task.parent is not None and not state.history:
        raise RuntimeError(f"the checkpoint of trial {task.parent}, to go on from, is gone")
    if task.recorded is not None:
        for i in range(task.recorded, len(state.history)):
            emit("epoch", epoch=i + 1, metrics=state.history[i], seconds=state.seconds[i])
    follower = _Follower(setup, task, folder, state, emit, stop)
    follower.patience = space.patience(hp)
    validation: dict[str, Any] = {}
    if len(dataset.validation.labels):
        validation["validation_data"] = (dataset.validation.images, dataset.validation.labels)
        validation["validation_batch_size"] = VALIDATION_BATCH
    if follower.ended(len(state.history)):
        if setup.keep_state and state.history:  # its parent's patience ended: who goes on from it?
            save_state(folder / "checkpoint.npz", model, state, task.attempt)
    else:
        space.fit(
            hp,
            model,
            dataset.train.images,
            dataset.train.labels,
            **validation,
            initial_epoch=len(state.history),
            epochs=task.epochs,
            callbacks=follower.callbacks(model),
            verbose=0,
        )
    # uncompiled: no optimiser in the file
    keras.config.set_dtype_policy("float32")
    inference = space.finished(hp)
    for name in ("best", "last"):
        if name == setup.protocol.weights or setup.both_weights:
            inference.set_weights(getattr(state, name))
            # of this attempt alone: a worker that was given up may still be at it
            partial = folder / f"{name}.{task.attempt}.partial.keras"
            inference.save(partial)
            os.replace(partial, folder / f"{name}.keras")
    inference.set_weights(getattr(state, setup.protocol.weights))
    os.replace(folder / f"{setup.protocol.weights}.keras", folder / "model.keras")
    describe_model(inference, dataset.validation, folder)
    described = {"values": dict(task.values), "seed": task.seed, **space.describe(hp)}
    (folder / "configuration.json").write_text(json.dumps(described, indent=2) + "\n")
    history = state.history
    last = setup.protocol.weights == "last"
    kept = len(history) - 1 if last else best_epoch(history, setup.objective)
    metrics = history[kept]
    # the epochs' are of the image alone, and of the precision that is trained in
    if validation and (space.views_of(hp) > 1 or setup.precision != "float32"):
        metrics = metrics | space.evaluate(hp, inference, **validation)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    emit(
        "done",
        score=metrics.get(setup.objective),
        metrics=metrics,
        best_epoch=kept + 1,
        epochs=len(history),
        parameters=inference.count_params(),
        trainable_parameters=trainable,
        flops=costs["flops"],
        model_bytes=(folder / "model.keras").stat().st_size,
        blocks_dropped=space.blocks_dropped(hp),
        **{name: costs[name] for name in costs if name == "epoch_seconds"},
        memory_bytes=psutil.Process().memory_info().rss,
    )


class _Follower(keras.callbacks.Callback):
    """Follows a fit: keeps the history and the weights, saves checkpoints, emits epochs, stops."""

    def __init__(
        self,
        setup: Setup,
        task: Task,
        folder: Path,
        state: State,
        emit: Callable[..., None],
        stop: Callable[[], Stop],
    ) -> None:
        super().__init__()
        self.setup, self.task, self.folder, self.state = setup, task, folder, state
        self.emit, self.stop = emit, stop
        self.patience = 0
        self.saved_at = self.epoch_start = time.monotonic()
        self.average: Any = None

    @property
    def async_safe(self) -> bool:
        """Whether Keras may tell the end of a batch from a thread, while the next one runs."""
        # JAX goes on without waiting for the loss; with the others there is nothing to gain
        return bool(keras.backend.backend() == "jax")

    def callbacks(self, model: Any) -> list[Any]:
        """Return itself, after Keras's own averaging of weights if the optimiser averages."""
        if not model.optimizer.use_ema:
            return [self]
        self.average = keras.callbacks.SwapEMAWeights()
        return [self.average, self]

    def ended(self, epochs: int) -> bool:
        """Return whether no epoch follows: the fidelity is reached, or patience is at its end."""
        if epochs >= self.task.epochs:
            return True
        monitor = self.setup.protocol.monitor
        # without validation images there is nothing to monitor
        values = [epoch[monitor] for epoch in self.state.history if monitor in epoch]
        if not self.patience or not values:
            return False
        best = int(np.argmin(values) if monitor == "val_loss" else np.argmax(values))
        return epochs - 1 - best >= self.patience

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch_start = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if logs and not math.isfinite(logs["loss"]):
            raise Diverged(f"loss became {logs['loss']} in epoch {len(self.state.history) + 1}")
        if self.stop() == "now":
            raise Stopped

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.stop() == "now":
            raise Stopped

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(f"{bad[0]} became {metrics[bad[0]]} in epoch {epoch + 1}")
        metrics["learning_rate"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        self.state.history.append(metrics)
        self.state.last = self.weights()
        if best_epoch(self.state.history, self.setup.objective) == epoch:
            self.state.best = self.state.last
        self.state.seconds.append(round(time.monotonic() - self.epoch_start, 3))
        asked = self.stop()
        ends = self.ended(epoch + 1)
        due = time.monotonic() - self.saved_at >= self.setup.checkpoint_seconds
        if (due and not ends) or asked or (ends and self.setup.keep_state):
            file = self.folder / "checkpoint.npz"
            save_state(file, self.model, self.state, self.task.attempt)
            self.saved_at = time.monotonic()
        self.emit("epoch", epoch=epoch + 1, metrics=metrics, seconds=self.state.seconds[-1])
        if ends:
            self.model.stop_training = True
        elif asked:
            raise Stopped

    def weights(self) -> list[npt.NDArray[Any]]:
        """Return the weights as they were validated: averaged, if they get averaged."""
        if self.average is None:
            return list(self.model.get_weights())
        self.average.on_test_begin()
        weights = list(self.model.get_weights())
        self.average.on_test_end()
        return weights


def best_epoch(history: list[Epoch], objective: str) -> int:
    """Return the index of the best epoch; the lower validation loss decides a tie, then the first.

    Without validation images there is no best one, and the last stands for it.
    """
    if objective not in history[-1]:
        return len(history) - 1
    sign = -1 if OBJECTIVES[objective] == "max" else 1
    return min(
        range(len(history)), key=lambda i: (sign * history[i][objective], history[i]["val_loss"], i)
    )


def describe_model(model: Any, shown: Part, folder: Path) -> None:
    """Write what the pictures need into `folder`: summary, diagram, predictions of a few images."""
    lines: list[str] = []
    model.summary(line_length=100, print_fn=lines.append, expand_nested=True)
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown_so = {"show_shapes": True, "show_layer_names": True, "expand_nested": True}
    diagram = keras.utils.model_to_dot(model, **shown_so)
    (folder / "diagram.dot").write_text(diagram.to_string(), encoding="utf-8")
    if not len(shown.labels):  # also since TensorFlow's convolutions do not take nothing
        return
    images, labels = shown.images[:SHOWN_IMAGES], shown.labels[:SHOWN_IMAGES]
    probabilities = keras.ops.convert_to_numpy(model(images, training=False))
    arrays = {"images": images, "labels": labels, "probabilities": probabilities}
    np.savez(folder / "validation_predictions.npz", **arrays)


def as_json(config: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain dicts and lists, for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[no-any-return]
