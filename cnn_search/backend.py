"""The door to the Keras backend: threads, determinism and silence, set before Keras is imported.

Nothing else in the package knows that TensorFlow exists.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def prepare(threads: int) -> None:
    """Set the backend up for reproducible training, before anything imports Keras.

    The same seed gives the same curve to the last digit only with the same number of threads and
    with deterministic kernels; what that costs stands in docs/design.md. Both are read when the
    backend starts: in a process that has it already, nothing is changed, so that `describe` stays
    true.

    Args:
        threads: Threads of one training, at least 1.
    """
    if "keras" in sys.modules:
        return
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load() -> None:
    """Import Keras, without its backend's greetings on stderr."""
    with _silent_stderr():
        import keras  # noqa: F401


def describe() -> dict[str, Any]:
    """Return the name of the Keras backend and its threads, for the record of an attempt."""
    import keras

    threads = int(os.environ.get("TF_NUM_INTRAOP_THREADS", os.cpu_count() or 1))
    return {"backend": keras.backend.backend(), "threads": threads}


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    # TensorFlow 2.21 writes "oneDNN custom operations are on" straight to the file descriptor,
    # before it has read its own log level
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
