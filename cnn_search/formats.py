"""Formats: a champion written for other programs, and run there: does it predict the same?"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from cnn_search import backend
from cnn_search.champion import Champion
from cnn_search.errors import DefinitionError, ModelError, first_line

CHECKED = 16  # images of noise that both predict
ALLOWED = 1e-4  # largest difference of a probability: other orders of summation, no more


class Written(NamedTuple):
    """A file or folder that was written, and how far its probabilities are from Keras's at most."""

    path: Path
    difference: float


class _Format(NamedTuple):
    keras_name: str
    suffix: str
    libraries: Sequence[str]
    run: Callable[[Path, npt.NDArray[np.uint8]], Any]


def check(kind: str) -> None:
    """See that a format can be written here.

    Raises:
        DefinitionError: a library that it needs is not installed, or another backend than
            TensorFlow is used.
    """
    missing = [name for name in FORMATS[kind].libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise DefinitionError(
            f"export: expected {', '.join(missing)} for {kind}; not installed. "
            "pip install 'cnn-search[export]'"
        )
    if keras.backend.backend() != "tensorflow":
        raise DefinitionError(
            f"export: expected TensorFlow as Keras's backend; received {keras.backend.backend()!r}."
            " Unset KERAS_BACKEND."
        )


def write(champion: Champion, kind: str, path: Path) -> Written:
    """Write a model in a format, with its class names beside it, and compare what it predicts.

    Args:
        champion: Which model; it is of no use afterwards.
        kind: A key of `FORMATS`.
        path: Of the file or folder; an earlier export that is there is replaced.

    Raises:
        ModelError: it cannot be written, or does not predict what Keras does.
    """
    chosen = FORMATS[kind]
    noise = np.random.default_rng(1).integers(0, 256, (CHECKED, *champion.input_shape), np.uint8)
    expected = champion.model.predict(noise, verbose=0)
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise ModelError(
            f"export: expected a file, or the folder of an earlier export, at {path}, which is "
            "replaced; received a folder of something else. Pass another --to."
        )
    partial = path.parent / f"{path.name}.partial{chosen.suffix}"
    try:
        _remove(partial)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "onnx":
            _plain_gelu(champion.model)
        with _quiet():
            champion.model.export(partial, format=chosen.keras_name, verbose=False)
            received = np.asarray(chosen.run(partial, noise))
        difference = float(np.abs(received - expected).max())
        if not difference <= ALLOWED:
            raise ValueError(f"probabilities that differ by {difference:.2g}")
        _remove(path)
        partial.replace(path)
        names = json.dumps(champion.class_names, ensure_ascii=False)
        classes = path.parent / f"{path.name.removesuffix(chosen.suffix)}.classes.json"
        classes.write_text(names + "\n", encoding="utf-8")
    except Exception as error:  # of converters and runtimes, which raise many kinds
        said = first_line(error)[:200]
        raise ModelError(
            f"export: expected {path} to be written and to predict what Keras does; received "
            f"{said}. Choose another folder or format."
        ) from None
    finally:
        _remove(partial)
    return Written(path, difference)


def _run_saved_model(path: Path, images: npt.NDArray[np.uint8]) -> Any:
    return keras.layers.TFSMLayer(path, call_endpoint="serve")(images)


def _run_onnx(path: Path, images: npt.NDArray[np.uint8]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def _run_litert(path: Path, images: npt.NDArray[np.uint8]) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(returned["index"])


FORMATS = {
    "savedmodel": _Format("tf_saved_model", ".savedmodel", (), _run_saved_model),
    "onnx": _Format("onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime"), _run_onnx),
    "litert": _Format("litert", ".tflite", ("ai_edge_litert",), _run_litert),
}


def _plain_gelu(model: Any) -> None:
    """Compute GELU by erf: tf2onnx 1.17 does not know TensorFlow's erfc."""

    def gelu(x: Any) -> Any:
        return x * (1 + keras.ops.erf(x / math.sqrt(2))) / 2

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _plain_gelu(layer)
        elif getattr(layer, "activation", None) is keras.activations.gelu:
            layer.activation = gelu


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep converters from writing to the terminal."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with backend.silent_stderr():
                yield
    finally:
        logging.disable(logging.NOTSET)
