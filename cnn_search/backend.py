"""The door to the Keras backend: threads, determinism and silence, set before Keras is imported.

Nothing else in the package knows one from another, but `formats`, which needs TensorFlow.
`KERAS_BACKEND` says which it is, as Keras reads it: "tensorflow" if not set, "jax" or "torch".
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

# where each backend reads how many threads it has
THREADS = {
    "tensorflow": ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
    "jax": ("NPROC",),
    "torch": ("OMP_NUM_THREADS",),
}
# a process takes of a GPU what it needs, not all of it
SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# glibc's M_MMAP_MAX and M_TRIM_THRESHOLD, as malloc.h has them
KEPT_MEMORY = {-4: 0, -1: 2**31 - 1}


def prepare(threads: int) -> None:
    """Set the backend up for reproducible training, before anything imports Keras.

    The same seed gives the same curve to the last digit only with the same number of threads and
    with deterministic kernels; what that costs stands in docs/design.md. Both are read when the
    backend starts: in a process that has it already, nothing is changed, so that `describe` stays
    true.

    Args:
        threads: Threads of one training, at least 1.
    """
    keep_memory()
    if "keras" in sys.modules:
        return
    for name in _threads_of(os.environ.get("KERAS_BACKEND", "tensorflow")):
        os.environ[name] = str(threads)
    for name, value in SHARED_GPU.items():
        os.environ.setdefault(name, value)
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def keep_memory() -> None:
    """Have glibc keep the memory of this process that is freed, and not ask the kernel each time.

    A training step allocates and frees a few hundred megabytes, in pieces that glibc would map and
    unmap: the kernel clears every page of them again, which took half of the time of a step
    (docs/performance.md). What was once in use stays with the process until it ends.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library, as musl
            for option, value in KEPT_MEMORY.items():
                ctypes.CDLL(None).mallopt(option, value)


def load() -> None:
    """Import Keras, without its backend's greetings on stderr."""
    with silent_stderr():
        import keras  # noqa: F401
    # in a notebook it would print on stdout that each trial's network has a graph of its own
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def clear() -> None:
    """Forget all networks there were, and free what they took.

    TensorFlow keeps the gradient function of each `custom_gradient` by a name of its own, for good,
    and with it the training step that it is in (tensorflow#97697; all gradients pass through one of
    Keras's): tens of megabytes a network, through which each collection of garbage walks.
    """
    import keras

    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.framework import ops

        kept = ops.gradient_registry._registry
        for name in [name for name in kept if name.startswith("CustomGradient-")]:
            del kept[name]
    keras.utils.clear_session()  # collects the garbage too


def describe() -> dict[str, Any]:
    """Return the name of the Keras backend and its threads, for the record of an attempt."""
    import keras

    name = keras.backend.backend()
    threads = os.environ.get(_threads_of(name)[0], os.cpu_count() or 1)
    return {"backend": name, "threads": int(threads)}


def _threads_of(name: str) -> tuple[str, ...]:
    return THREADS.get(name, THREADS["tensorflow"])


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what native code writes to the file descriptor of standard error."""
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


@functools.cache
def compiled(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """Return a function of arrays as the backend runs it fastest, to be called again and again.

    With JAX it is compiled, anew for each value of its arguments `static`, and what it returns
    stays on the device; else that is NumPy's.
    """
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function, static_argnames=static)  # type: ignore[no-any-return]
    return lambda *arrays, **others: keras.ops.convert_to_numpy(function(*arrays, **others))


def picker(array: npt.NDArray[Any]) -> Callable[[npt.NDArray[np.int64]], Any]:
    """Return what gives some rows of an array.

    From the memory of JAX's GPU, if the array takes less than a quarter of it: what it gives is
    there too. Else from the array itself, as NumPy does.
    """
    if array.nbytes >= gpu_bytes() / 4:
        return array.__getitem__
    import jax

    held = jax.device_put(array)
    return lambda rows: compiled(operator.getitem)(held, rows)


def fed(batches: Any) -> Any:
    """Return a `keras.utils.PyDataset` of tuples as what `fit` takes fastest, to be given the same.

    With TensorFlow a `tf.data.Dataset` that asks for one batch after the other: Keras would make a
    generator of them, which costs some per cent of a step (docs/performance.md).
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    like = batches[0]

    def batch(index: Any) -> Any:
        parts = tf.numpy_function(batches.__getitem__, [index], [part.dtype for part in like])
        for part, other in zip(parts, like, strict=True):
            part.set_shape((None, *other.shape[1:]))
        return tuple(parts)

    return tf.data.Dataset.range(len(batches)).map(batch).prefetch(2)


def gpu_bytes() -> int:
    """Return how much memory JAX may take of its GPU, 0 without one or with another backend."""
    import keras

    if keras.backend.backend() != "jax":
        return 0
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)  # type: ignore[no-any-return]


def gradients(model: Any, images: Any, index: int) -> Any:
    """Return the gradient of a model's output `index` by its inputs, of each image on its own.

    Args:
        model: A `keras.Model` with float32 inputs and one row of outputs an image.
        images: float32 `(n, height, width, channels)`.
        index: Of the output.
    """
    import keras

    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = tf.reduce_sum(model(inputs, training=False)[:, index])
        return tape.gradient(total, inputs).numpy()
    if name == "jax":
        import jax

        variables = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )
        return jax.device_get(
            jax.grad(lambda x: model.stateless_call(*variables, x)[0][:, index].sum())(images)
        )
    import torch

    inputs = torch.tensor(images, requires_grad=True)
    model(inputs, training=False)[:, index].sum().backward()
    return inputs.grad.numpy()
