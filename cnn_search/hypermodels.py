"""Hypermodels of others: a `keras_tuner.HyperModel` or a function `build(hp)`, as a space.

What a sweep asks of `search_spaces.images.Space`, answered by the model that somebody's own code
builds and compiles.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np
import numpy.typing as npt
from keras import layers

from cnn_search import backend
from cnn_search.errors import DefinitionError
from cnn_search.network import layers_of

DEFAULTS = "defaults"  # the baseline: what the code builds if nothing is chosen


def adopt(found: Any, reference: str) -> Callable[..., Adopted]:
    """Return what makes a space of a hypermodel (a class or an object) or a function `build(hp)`.

    Raises:
        DefinitionError: it is none of these.
    """
    a_class = isinstance(found, type) and issubclass(found, keras_tuner.HyperModel)
    a_function = callable(found) and not isinstance(found, type)
    if not (a_class or a_function or isinstance(found, keras_tuner.HyperModel)):
        raise DefinitionError(
            f"search_space: expected a subclass of search_spaces.images.Space, a "
            f"keras_tuner.HyperModel or a function build(hp); received {reference!r}, which is "
            f"{found!r}. Name one of these."
        )
    return functools.partial(Adopted, found, reference)


class Adopted:
    """A space whose models somebody's own code builds, compiles and, if it wants, fits.

    The code gets pixels as floats: from 0 to 255 if its model rescales or normalises them itself,
    else from 0 to 1. Labels are one-hot if its loss wants them so. Its trial 0 has the default of
    every hyperparameter.

    Args:
        found: A class or object of `keras_tuner.HyperModel`, or a function `build(hp)`. A class is
            made with those of `input_shape`, `classes`, `num_classes` that it takes.
        reference: What it is called in the sweep's definition.
        others: As of `search_spaces.images.Space`.
    """

    baselines: Mapping[str, Any] = {DEFAULTS: None}

    def __init__(
        self,
        found: Any,
        reference: str,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        train_images: int,
        protocol: Any,
        metrics: Sequence[str] = (),
        class_weights: npt.NDArray[np.float32] | None = None,
        seed: int = 1,
    ) -> None:
        self.reference, self.input_shape, self.classes = reference, input_shape, classes
        self.protocol, self.class_weights = protocol, class_weights
        self.objectives = [metric.removeprefix("val_") for metric in metrics]
        self._known: Any = None
        self._heard = False  # of an epoch
        if isinstance(found, type):
            given = {"input_shape": input_shape, "classes": classes, "num_classes": classes}
            taken = inspect.signature(found).parameters
            try:
                found = found(**{name: given[name] for name in given if name in taken})
            except TypeError as error:
                raise self._wrong(
                    "a class that is made with input_shape, classes, num_classes or nothing", error
                ) from None
        if not isinstance(found, keras_tuner.HyperModel):
            found = _Built(found)
        self.hypermodel = found

    def hyperparameters(self, values: Mapping[str, Any] | None = None) -> Any:
        """Return `keras_tuner.HyperParameters`: with `values`, or, without, all that there are.

        The code says what it varies only by asking for it. So it is run with the defaults, then
        with every choice and both ends of every range in turn, until nothing new comes up.

        Raises:
            DefinitionError: it builds no model, or none for these images.
        """
        if values is not None:
            hp = keras_tuner.HyperParameters()
            hp.values = dict(values)
            return hp
        if self._known is None:
            known = self._asked({})
            seen: set[tuple[str, Any]] = set()
            while new := [pair for pair in _ends(known) if pair not in seen]:
                for name, value in new:
                    seen.add((name, value))
                    known.merge(self._asked({**known.values, name: value}), overwrite=False)
            self._known = known
        return self._known.copy()

    def _asked(self, values: Mapping[str, Any]) -> Any:
        """Return what the code asks for, where these are the answers."""
        hp = self.hyperparameters(values)
        backend.clear()  # of the model before
        try:
            model = self.build(hp)
        except DefinitionError:
            raise
        except Exception as error:  # somebody's own code
            raise self._wrong(f"a model with {dict(hp.values)}", error) from error
        # what it varies in its `fit` too, up to where it begins to train
        model.fit = lambda *arguments, **options: keras.callbacks.History()
        with contextlib.suppress(Exception):
            self.hypermodel.fit(hp, model, None, None, validation_data=None, callbacks=[], epochs=1)
        return hp

    def build(self, hp: Any) -> Any:
        """Build and compile the model of `hp`, as the code does.

        Raises:
            DefinitionError: it is no model, not compiled, or not one for these images and classes.
        """
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model) or not model.compiled:
            raise self._wrong("a compiled keras.Model", model)
        if not model.built:
            model.build((None, *self.input_shape))
        fits = (tuple(model.input_shape[1:]), tuple(model.output_shape[1:]))
        if fits != (self.input_shape, (self.classes,)):
            wanted = f"a model of images {self.input_shape} and {self.classes} classes"
            raise self._wrong(wanted, "one of {} and {}".format(*fits))
        return model

    def fit(
        self,
        hp: Any,
        model: Any,
        x: npt.NDArray[np.uint8],
        y: npt.NDArray[np.int64],
        *,
        validation_data: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None = None,
        callbacks: Sequence[Any] = (),
        **options: Any,
    ) -> Any:
        """Train `model` as the code does, on uint8 images and integer labels."""
        if validation_data is not None:
            options["validation_data"] = self._prepared(model, *validation_data)
        if self.class_weights is not None:
            options["class_weight"] = dict(enumerate(self.class_weights.tolist()))
        images, targets = self._prepared(model, x, y)
        watched = [keras.callbacks.LambdaCallback(on_epoch_end=self._check), *callbacks]
        self._heard = False
        history = self.hypermodel.fit(hp, model, images, targets, callbacks=watched, **options)
        if not self._heard:
            raise self._wrong("a fit that hands its callbacks on to model.fit", "no epoch of it")
        return history

    def _check(self, epoch: int, logs: Mapping[str, float] | None) -> None:
        self._heard = True
        missing = [name for name in self.objectives if name not in (logs or {})]
        if missing:
            raise self._wrong(
                f"a model that is compiled with the metric {missing[0]!r}", sorted(logs or {})
            )

    def evaluate(
        self,
        hp: Any,
        model: Any,
        validation_data: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
        validation_batch_size: int,
    ) -> dict[str, float]:
        """Return a finished model's metrics by name, as `fit` has them: "val_accuracy", …."""
        own = self.build(hp)
        own.set_weights(model.get_weights())
        data = self._prepared(own, *validation_data)
        found = own.evaluate(*data, batch_size=validation_batch_size, return_dict=True, verbose=0)
        return {f"val_{name}": float(value) for name, value in found.items()}

    def finished(self, hp: Any) -> Any:
        """Return the model to keep, without weights: uint8 images to probabilities."""
        own = self.build(hp)
        image = keras.Input(self.input_shape, dtype="uint8", name="image")
        from_logits = getattr(keras.losses.get(own.loss), "_fn_kwargs", {}).get("from_logits")
        if getattr(own, "inputs", None):  # the same layers, without the optimiser
            own = keras.Model(own.inputs[0], own.outputs[0], name=own.name)
        x = own(layers.Rescaling(_scale(own), name="pixels")(image))
        if from_logits:
            x = layers.Softmax(name="probabilities")(x)
        return keras.Model(image, x, name="cnn")

    def _prepared(self, model: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        """Return images and labels as the code's model and loss want them."""
        pixels = images.astype(np.float32)
        pixels *= _scale(model)
        loss = keras.losses.get(model.loss)
        name = str(getattr(loss, "name", None) or getattr(loss, "__name__", ""))
        labels = np.asarray(labels).reshape(-1)
        if "sparse" in name:
            return pixels, labels
        return pixels, np.eye(self.classes, dtype=np.float32)[labels]

    def fetch(self, hp: Any, points: Sequence[Mapping[str, Any]]) -> None:
        """Have at hand what the code needs: its own affair, and done by its discovery."""

    def views_of(self, hp: Any) -> int:
        """Return over how many views of an image the finished model averages."""
        return 1

    def step_of(self, hp: Any) -> tuple[int, bool]:
        """Return images in a training step, and whether they are moved: Keras's default batch."""
        return int(hp.values.get("batch_size", 32)), False

    def patience(self, hp: Any) -> int:
        """Return the epochs without progress after which training ends; 0 for never."""
        return int(self.protocol.patience)

    def blocks_dropped(self, hp: Any) -> int:
        """Return none: the code's model fits the images, or is not built."""
        return 0

    def describe(self, hp: Any) -> dict[str, Any]:
        """Return what there is to say of a configuration, ready for JSON."""
        return {"configuration": {"hypermodel": self.reference, **hp.values}}

    def baseline_values(self, name: str) -> dict[str, Any]:
        """Return the default of every hyperparameter that is active with them.

        Raises:
            DefinitionError: another baseline is asked for.
        """
        if name != DEFAULTS:
            raise DefinitionError(f"baselines: expected {DEFAULTS!r}; received {name!r}.")
        known = self.hyperparameters()
        return {
            entry.name: known.values[entry.name] for entry in known.space if known.is_active(entry)
        }

    def recipe_values(self) -> dict[str, dict[str, Any]]:
        """Return none: what is known to be good is not said by a hypermodel."""
        return {}

    def _wrong(self, expected: str, received: Any) -> DefinitionError:
        if isinstance(received, Exception):
            received = f"{type(received).__name__}: {' '.join(str(received).split())}"
        return DefinitionError(
            f"search_space: {self.reference}: expected {expected}; received {received}. Correct it."
        )


class _Built(keras_tuner.HyperModel):
    """A function `build(hp)` as a hypermodel."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        super().__init__()
        self.build = build


def _ends(known: Any) -> list[tuple[str, Any]]:
    """Return each choice, and both ends of each range, by the names of what is known."""
    return [
        (hp.name, value)
        for hp in known.space
        for value in ((hp.min_value, hp.max_value) if hasattr(hp, "max_value") else hp.values)
    ]


def _scale(model: Any) -> float:
    """Return what a pixel in 0..255 is multiplied by, for a model to get it as it wants it."""
    own = (layers.Rescaling, layers.Normalization)
    return 1.0 if any(isinstance(layer, own) for layer in layers_of(model)) else 1 / 255
