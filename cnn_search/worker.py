"""The worker's side of a cluster: trains an attempt in this process, and sends its events on.

What travels is strings and numbers. Keras is imported after its threads are set, and nothing of
the tracking or the oracle is.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from distributed.core import Status

from cnn_search import backend
from cnn_search.datasets import Dataset, Part
from cnn_search.ledger import IMAGES
from cnn_search.surroundings import usable_cores, versions

_asked: dict[str, str] = {}  # what attempts were told, by key
_loaded: dict[str, Dataset] = {}  # by folder


def enlist(folder: str, ours: bool) -> dict[str, Any]:
    """Return what the driver wants to know of this worker before it trains.

    Args:
        folder: The sweep's, which this worker must see.
        ours: Started by the driver, whose terminal's Ctrl-C is not meant for it: it is told.
    """
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "cores": usable_cores(),
        "versions": versions(),
        # what an earlier sweep has set, for as long as the process lives
        "keras": backend.describe() if "keras" in sys.modules else {},
        "sees": Path(folder, IMAGES, "train_images.npy").is_file(),
    }


def ask_to_stop(key: str, when: str) -> None:
    """Tell an attempt that runs here, or will, to stop."""
    if _asked.get(key) != "now":
        _asked[key] = when


def attempt(
    key: str, topic: str, task: Mapping[str, Any], setup: Mapping[str, Any], backend_name: str
) -> list[dict[str, Any]]:
    """Train one attempt; its events go to the topic as they happen.

    Args:
        key: The attempt's, by which it may be told to stop.
        topic: Where events are sent: {key, n, kind, fields}, n counted from 0.
        task: The fields of `training.Task`, and the threads.
        setup: Those of `training.Setup`.
        backend_name: Keras's backend in the driver.

    Returns:
        The events again, in case that the driver's connection was down.
    """
    worker = distributed.get_worker()
    first = not _loaded
    if first:
        os.environ["KERAS_BACKEND"] = backend_name
        backend.prepare(task["threads"])
        backend.load()
    from cnn_search.speed import Speed
    from cnn_search.training import Protocol, Setup, Task, train

    if first:
        gc.collect()
        gc.freeze()
    sent: list[dict[str, Any]] = []

    def emit(kind: str, **fields: Any) -> None:
        if kind == "start":
            fields["worker"] = worker.address
        sent.append({"key": key, "n": len(sent), "kind": kind, "fields": fields})
        worker.log_event(topic, sent[-1])

    def stop() -> Any:
        # the driver is gone, or holds this worker for lost: another attempt may be under way
        known = worker.state.tasks.get(key)
        if known is None or known.state != "executing" or worker.status != Status.running:
            return "now"
        return _asked.get(key, "")

    whole = {
        "protocol": Protocol(**setup["protocol"]),
        "folder": Path(setup["folder"]),
        "speed": setup["speed"] and Speed(**setup["speed"]),
    }
    made = Setup(**{**setup, **whole})
    fields = {name: value for name, value in task.items() if name != "threads"}
    train(Task(**fields), made, read_images(str(made.folder / IMAGES)), emit, stop)
    _asked.pop(key, None)
    return sent


def write_images(folder: Path, dataset: Dataset) -> None:
    """Write what trials are trained and validated on; the test part is not among it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "class_names.npy", np.array(dataset.class_names))
    for name in ("validation", "train"):  # the last file stands for all
        part: Part = getattr(dataset, name)
        np.save(folder / f"{name}_labels.npy", part.labels)
        np.save(folder / f"{name}_images.npy", part.images)


def read_images(folder: str) -> Dataset:
    """Return what `write_images` wrote, mapped into the memory; once in a process."""
    if folder not in _loaded:

        def read(name: str) -> Any:
            return np.asarray(np.load(Path(folder, f"{name}.npy"), mmap_mode="r"))

        train, validation = (
            Part(read(f"{name}_images"), read(f"{name}_labels")) for name in ("train", "validation")
        )
        none = Part(train.images[:0], train.labels[:0])
        names = tuple(str(name) for name in read("class_names"))
        _loaded[folder] = Dataset(Path(folder).name, folder, names, train, validation, none, "", ())
    return _loaded[folder]
