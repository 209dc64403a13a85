"""Hyperparameter search for Keras image classifiers, tracked in MLflow.

>>> import cnn_search
>>> sweep = cnn_search.run("digits", trials=10)  # the same again goes on where it was cut short
>>> sweep.trials().nlargest(5, "score")  # pandas; also curves(), finals(); answer(), report()
>>> cnn_search.best("digits").model.predict(images)  # the champion of MLflow's registry
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
HOMES = {
    "CnnSearchError": "errors",
    "Champion": "champion",
    **dict.fromkeys(("Sweep", "best", "load", "run"), "api"),
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'cnn_search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cnn_search.{HOMES[name]}"), name)
