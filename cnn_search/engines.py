"""Engines: where trials run. An engine takes tasks and puts their events on one queue.

Shaped as `concurrent.futures` is: `submit` returns at once, the engine trains elsewhere, so that
the driver can write and answer meanwhile: here in one thread of this process ("inline"), or in
worker processes (`cluster.py`).
"""

from __future__ import annotations

import abc
import contextlib
import functools
import gc
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from cnn_search import backend
from cnn_search.datasets import Dataset
from cnn_search.errors import EngineError
from cnn_search.training import Setup, Stop, Task, train

Message = tuple[str, dict[str, Any]]  # kind, fields


class Engine(abc.ABC):
    """Runs attempts at trials; abstract.

    Attributes:
        events: (kind, fields) of every event, in order for each attempt; `trial` and `attempt` are
            among the fields. Beside the events of `train`: "died", an attempt's worker ended under
            it, with `reason` ("died", "memory", "lost") and `message`; "joined", there may be more
            slots. Every attempt that was
            submitted gives one "start" and then, in the end, one of "done", "refused", "failed",
            "stopped" and "died", unless it is killed.
        grace_seconds: For a trial that was told to stop, until it is killed.
    """

    grace_seconds = 30.0

    def __init__(self) -> None:
        # a SimpleQueue, since the signal handler puts into it too
        self.events: queue.SimpleQueue[Message] = queue.SimpleQueue()

    @abc.abstractmethod
    def start(self) -> None:
        """Make ready to train.

        Raises:
            EngineError: workers cannot be had, or cannot do what is asked.
        """

    @abc.abstractmethod
    def slots(self) -> int:
        """Return how many trials can run at once now.

        Raises:
            EngineError: no worker is left, and none came back in time.
        """

    @abc.abstractmethod
    def submit(self, task: Task) -> None:
        """Train `task` as soon as a slot is free."""

    @abc.abstractmethod
    def stop(self, when: Stop, trial: int | None = None) -> None:
        """Tell a trial, or all, to stop: "now" after the running batch, or after the "epoch"."""

    @abc.abstractmethod
    def kill(self, trial: int) -> None:
        """End a trial that does not stop, if it has not ended in this moment.

        Raises:
            EngineError: it cannot be ended from here.
        """

    @abc.abstractmethod
    def close(self, wait: bool) -> None:
        """End: after what was told to stop has stopped, or at once."""


class InlineEngine(Engine):
    """Trains one trial at a time in a thread of this process; final."""

    # one that does not stop ends the sweep: on a busy machine, TensorFlow was seen to take half a
    # minute over the first batch of an epoch
    grace_seconds = 600.0

    def __init__(self, setup: Setup, dataset: Dataset) -> None:
        super().__init__()
        self._setup, self._dataset = setup, dataset
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._asked: dict[int | None, Stop] = {}  # by trial; None for all
        # a daemon: a second Ctrl-C does not wait for a batch to end
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    def start(self) -> None:
        # what the imports made never goes away: out of the collector's sight, it saves half a
        # second of each clear_session; a network that an earlier engine trained would not go either
        backend.clear()
        gc.collect()
        gc.freeze()
        self._thread.start()

    def slots(self) -> int:
        return 1

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def stop(self, when: Stop, trial: int | None = None) -> None:
        if self._asked.get(trial) != "now":
            self._asked[trial] = when

    def kill(self, trial: int) -> None:
        raise EngineError(
            f"trial {trial}: expected to stop within a batch; it does not, and a trial in the "
            "command's own process cannot be ended. The same command goes on without it; with "
            "--workers 1 the sweep would."
        )

    def close(self, wait: bool) -> None:
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            emit = functools.partial(self._emit, task)
            self._asked.pop(task.trial, None)
            try:
                train(task, self._setup, self._dataset, emit, functools.partial(self._told, task))
            except BaseException as error:  # it raises nothing; the driver must not wait for ever
                text = traceback.format_exc()
                emit("failed", reason="engine", message=str(error) or "?", traceback=text)

    def _emit(self, task: Task, kind: str, **fields: Any) -> None:
        self.events.put((kind, {"trial": task.trial, "attempt": task.attempt, **fields}))

    def _told(self, task: Task) -> Stop:
        asked = self._asked.get(None, ""), self._asked.get(task.trial, "")
        return "now" if "now" in asked else asked[0] or asked[1]


@contextlib.contextmanager
def interruptible(engine: Engine) -> Iterator[None]:
    """Turn the first Ctrl-C, or SIGTERM, into an event; a second one is a KeyboardInterrupt.

    A handler that raised could cut the writing of a ledger line in two.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        engine.events.put(("interrupt", {}))

    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
