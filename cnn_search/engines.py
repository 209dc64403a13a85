"""Engines: where trials run. An engine takes tasks and puts their events on one queue.

Shaped as `concurrent.futures` is: `submit` returns at once, the engine trains elsewhere, here in
one thread of this process ("inline"), so that the driver can write and answer meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from cnn_search.datasets import Dataset
from cnn_search.training import Setup, Stop, Task, train

Message = tuple[str, dict[str, Any]]  # kind, fields


class InlineEngine:
    """Trains one trial at a time in a thread of this process; final.

    Attributes:
        slots: How many trials run at once.
        events: (kind, fields) of every event, in order; `trial` and `attempt` are among the fields.
    """

    slots = 1

    def __init__(self, setup: Setup, dataset: Dataset) -> None:
        # a SimpleQueue, since the signal handler puts into it too
        self.events: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._setup, self._dataset = setup, dataset
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._stop: Stop = ""
        # a daemon: a second Ctrl-C does not wait for a batch to end
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    def start(self) -> None:
        """Start the training thread."""
        # what the imports made never goes away: out of the collector's sight, it saves half a
        # second of each clear_session
        gc.collect()
        gc.freeze()
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Train `task` as soon as the slot is free."""
        self._tasks.put(task)

    def stop(self, when: Stop) -> None:
        """Tell what runs to stop: "now" after the running batch, or after the running "epoch"."""
        self._stop = when

    def close(self) -> None:
        """Wait until the thread has ended what it was told to end."""
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            which = {"trial": task.trial, "attempt": task.attempt}

            def emit(kind: str, which: dict[str, int] = which, **fields: Any) -> None:
                self.events.put((kind, {**which, **fields}))

            try:
                train(task, self._setup, self._dataset, emit, lambda: self._stop)
            except (
                BaseException
            ) as error:  # train raises nothing; the driver must not wait for ever
                text = traceback.format_exc()
                emit("failed", reason="engine", message=str(error) or "?", traceback=text)


@contextlib.contextmanager
def interruptible(engine: InlineEngine) -> Iterator[None]:
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
