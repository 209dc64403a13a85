"""Checkpoints: a training in one file, with its optimiser, random state, history, best weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class State:
    """Where a training stands.

    Attributes:
        history: The metrics of each epoch so far.
        seconds: What each of them took.
        best, last: The weights that were validated in the best and the last epoch so far, in
            Keras's order.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: list[npt.NDArray[Any]] = field(default_factory=list)
    last: list[npt.NDArray[Any]] = field(default_factory=list)


def save_state(path: Path, model: Any, state: State, attempt: int) -> None:
    """Write the model's and the optimiser's variables and `state`; whole and on the disk, or not.

    Until it is whole, the file is the attempt's own: an older one's may still be at it elsewhere.
    The variables of a model include the random state of its dropout layers.
    """
    arrays = {f"model{i}": np.asarray(v) for i, v in enumerate(model.variables)}
    arrays |= {f"optimiser{i}": np.asarray(v) for i, v in enumerate(model.optimizer.variables)}
    for name in ("best", "last"):
        arrays |= {f"{name}{i}": value for i, value in enumerate(getattr(state, name))}
    partial = path.with_suffix(f".{attempt}.partial")
    with open(partial, "wb") as file:
        told = np.array(json.dumps([state.history, state.seconds]))
        np.savez(file, told=told, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def load_state(path: Path, model: Any) -> State:
    """Put the saved variables into a compiled `model` and return the saved state.

    A file that is not there is an empty state: the training starts from the beginning.
    """
    if not path.exists():
        return State()
    # the optimiser has no variables before it is built, and would come back without its momenta
    model.optimizer.build(model.trainable_variables)
    with np.load(path, allow_pickle=False) as saved:
        for name, variables in (
            ("model", model.variables),
            ("optimiser", model.optimizer.variables),
        ):
            for index, variable in enumerate(variables):
                variable.assign(saved[f"{name}{index}"])
        best, last = (
            [saved[f"{name}{i}"] for i in range(len(model.weights))] for name in ("best", "last")
        )
        history, seconds = json.loads(str(saved["told"]))
        return State(history, seconds, best, last)
