"""The champion: a registered model, a file that was pulled, or a network of ImageNet, opened."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_search import backbones, backend
from cnn_search.errors import ModelError, TrackingError, first_line
from cnn_search.surroundings import usable_cores


@dataclass(frozen=True)
class Champion:
    """A trained model and what its outputs mean.

    Attributes:
        title: Which one: "cifar10 version 2, champion", or the file.
        model: A `keras.Model`: raw uint8 images `(n, height, width, channels)` to float32
            probabilities `(n, classes)`.
        class_names: In the order of the outputs.
    """

    title: str
    model: Any
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return tuple(self.model.input_shape[1:])


def read(name: str, mlruns: Path, alias: str = "champion") -> Champion:
    """Return the model that a sweep registered, that a file holds, or that ImageNet trained.

    Args:
        name: A registered model's, the path of a `.keras` file with its `.classes.json` beside, or
            a key of `backbones.KNOWN`, if no sweep of that name has one.
        mlruns: The folder of MLflow's database, where it is not the user's own server.
        alias: Which version: "champion" or "challenger".

    Raises:
        TrackingError: no such model is registered, or MLflow does not answer.
        ModelError: the file is not a model with as many outputs as there are class names, or
            weights of ImageNet are not there.
    """
    if name in backbones.KNOWN and not _is_registered(name, mlruns, alias):
        backend.prepare(usable_cores())
        backend.load()
        return Champion(f"{name}, trained on ImageNet", *backbones.classifier(name))
    if name.endswith(".keras"):
        return _open(Path(name), name)
    from cnn_search import models, store

    opened = store.open_store(mlruns, name)
    with tempfile.TemporaryDirectory() as folder:
        version, files = models.pull_model(opened, name, Path(folder), alias)
        return _open(files[0], f"{name} version {version}, {alias}")


def _is_registered(name: str, mlruns: Path, alias: str) -> bool:
    from cnn_search import models, store

    try:
        models.show_model(store.open_store(mlruns, name), name, alias)
    except TrackingError:  # there is none, or no MLflow that can be asked
        return False
    return True


def _open(file: Path, title: str) -> Champion:
    backend.prepare(usable_cores())
    backend.load()
    import keras

    names = file.with_suffix(".classes.json")
    try:
        model = keras.models.load_model(file, compile=False)
        class_names = tuple(json.loads(names.read_text(encoding="utf-8")))
        if len(class_names) != model.output_shape[-1]:
            raise ValueError(f"{len(class_names)} names, {model.output_shape[-1]} outputs")
    except Exception as error:  # h5py, zipfile and Keras raise many kinds
        said = first_line(error)
        raise ModelError(
            f"{title}: expected a model as `registry pull` writes it, {file.name} with "
            f"{names.name} beside it; received {said}. Pull it again; or, if it has layers of your "
            "own, import the file that registers them and use cnn_search.best."
        ) from None
    return Champion(title, model, class_names)
