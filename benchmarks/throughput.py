"""Images a second of one training: the bare step, ours, and other ways to augment and feed.

python benchmarks/throughput.py [--quick] [--data-dir D] [--images N] [--batch N] [--rounds N]
    [--precision mixed_bfloat16] [--json FILE]

The tutorial's model of CIFAR-10, one copy for each way, and its shift, zoom and flip. The bare step
gets one batch of random pixels again and again. A round is an epoch of each way, beginning with
another one each time; the first, in which graphs are made, does not count, nor does the first step
of an epoch. Then the same for judging: `evaluate`, as ours does it, and `predict`, by batch size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnn_search import backend
from cnn_search.surroundings import usable_cores

backend.prepare(usable_cores())
backend.load()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from cnn_search import datasets  # noqa: E402
from cnn_search.optimisation import targets_of  # noqa: E402
from cnn_search.statistics import seeds_interval  # noqa: E402
from cnn_search.training import VALIDATION_BATCH, Protocol, find_space  # noqa: E402

Feed = Callable[[Any, Any, int], Any]  # images, labels, batch size -> what `fit` takes
CLASSES = 10


class Same(keras.utils.PyDataset):  # type: ignore[misc]
    """One batch of random pixels, again and again."""

    def __init__(self, shape: tuple[int, ...], batch: int, count: int) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.batch = rng.integers(0, 256, (batch, *shape), np.uint8), rng.integers(0, 10, batch)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.batch


def bare(images: Any, labels: Any, batch: int) -> Any:
    same = Same(images.shape[1:], batch, len(images) // batch)
    if keras.backend.backend() != "tensorflow":
        return same
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(same[0]).repeat(len(same))


def arrays(images: Any, labels: Any, batch: int) -> Any:
    return images, labels


def image_data_generator(images: Any, labels: Any, batch: int) -> Any:
    """Augment as the tutorial does: an image after the other, in Python."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    changes = ImageDataGenerator(
        width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True
    )
    return changes.flow(images.astype(np.float32), labels, batch_size=batch)


def keras_layers(images: Any, labels: Any, batch: int) -> Any:
    """Augment by Keras's layers."""
    changes = keras.Sequential(
        [
            keras.layers.RandomTranslation(0.2, 0.2, fill_mode="nearest", seed=1),
            keras.layers.RandomZoom((-0.2, 0.2), (-0.2, 0.2), fill_mode="nearest", seed=2),
            keras.layers.RandomFlip("horizontal", seed=3),
        ]
    )
    return pipeline(changes, images, labels, batch)


def kerastuner(images: Any, labels: Any, batch: int) -> Any:
    """Shift by KerasTuner's HyperImageAugment, which has no zoom and no flip.

    A factor is the least of its range if nobody chooses: without ranges, 0, it changes nothing.
    """
    import keras_tuner

    maker = keras_tuner.applications.HyperImageAugment(
        images.shape[1:],
        translate_x=[0.2, 0.4],
        translate_y=[0.2, 0.4],
        rotate=None,
        contrast=None,
        augment_layers=0,
    )
    return pipeline(maker.build(keras_tuner.HyperParameters()), images, labels, batch)


def pipeline(changes: Any, images: Any, labels: Any, batch: int) -> Any:
    """Shuffle, batch and change images in a `tf.data` pipeline."""
    import tensorflow as tf

    def change(some: Any, targets: Any) -> Any:
        return changes(tf.cast(some, tf.float32), training=True), targets

    rows = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=1)
    return rows.batch(batch).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


FEEDS: dict[str, Feed | None] = {
    "bare step": bare,
    "ours": None,  # by the space's own `fit`
    "ours, mixed_bfloat16": None,
    "ours, no augmentation": None,
    "arrays, no augmentation": arrays,
    "tutorial's ImageDataGenerator": image_data_generator,
    "Keras layers in tf.data": keras_layers,
    "KerasTuner's HyperImageAugment, shift alone": kerastuner,
}


class Way:
    """A model and how it is fed; `epoch` trains one epoch."""

    def __init__(self, name: str, space: Any, images: Any, labels: Any, batch: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        still = {"shift": 0.0, "zoom": 0.0, "flip": False} if "no augmentation" in name else {}
        self.hp = space.hyperparameters({"batch_size": batch, **still})
        self.space, self.feed = space, FEEDS[name]
        usual = keras.config.dtype_policy()
        if "mixed_bfloat16" in name:
            keras.config.set_dtype_policy("mixed_bfloat16")
        self.model = space.build(self.hp)
        keras.config.set_dtype_policy(usual)
        training = space.configure(self.hp).training
        self.data = self.feed and self.feed(images, targets_of(labels, training, CLASSES), batch)

    def epoch(self) -> float:
        """Train an epoch; return its images a second, from the end of its first step on."""
        times: list[float] = []
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
        )
        options = {"epochs": 1, "callbacks": [watch], "verbose": 0}
        if self.feed is None:
            self.space.fit(self.hp, self.model, self.images, self.labels, **options)
        elif isinstance(self.data, tuple):
            self.model.fit(*self.data, batch_size=self.batch, **options)
        else:
            self.model.fit(self.data, **options)
        return (len(times) - 1) * self.batch / (times[-1] - times[0])


def judge(model: Any, images: Any, labels: Any, batch: int | None) -> float:
    """Return the images a second of `evaluate`, or of `predict` with a batch size."""
    began = time.perf_counter()
    if batch is None:
        model.evaluate(images, labels, batch_size=VALIDATION_BATCH, verbose=0)
    else:
        model.predict(images, batch_size=batch, verbose=0)
    return len(images) / (time.perf_counter() - began)


def table(found: dict[str, list[float]], base: str) -> str:
    """Return the table: medians, and the mean ratio to the base in the same round (t, 95 %)."""
    lines = ["| way | n | images a second | min to max | of the first |", "|---|---|---|---|---|"]
    for name, rates in found.items():
        ratios = [rate / other for rate, other in zip(rates, found[base], strict=True)]
        middle, low, high = statistics.median(rates), min(rates), max(rates)
        of_base = seeds_interval(ratios)
        ratio = f"{of_base.mean:.3f}"
        if of_base.low is not None:
            ratio += f" ({of_base.low:.3f} to {of_base.high:.3f})"
        told = f"{middle:,.0f} | {low:,.0f} to {high:,.0f}"
        lines.append(f"| {name} | {len(rates)} | {told} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--images", type=int, default=1920)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    count, rounds = (640, 1) if options.quick else (options.images, options.rounds)
    count -= count % options.batch
    data = datasets.load("cifar10", data_dir=options.data_dir, train_limit=2 * count)
    images, labels = data.train.images[:count], data.train.labels[:count]
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(options.precision)
    space = find_space("cifar10")(data.input_shape, CLASSES, count, Protocol(epochs=1))
    ways, firsts = {}, {}
    for name in FEEDS:
        try:
            ways[name] = Way(name, space, images, labels, options.batch)
            began = time.perf_counter()
            ways[name].epoch()
            firsts[name] = time.perf_counter() - began
        except Exception as error:  # of another project, or not for this backend
            ways.pop(name, None)
            print(f"{name}: left out ({type(error).__name__}: {str(error).splitlines()[0][:100]})")
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):  # in turns, as a machine has slow minutes
        first = number % len(ways)
        for name in [*ways][first:] + [*ways][:first]:
            found[name].append(ways[name].epoch())
    what = f"{keras.backend.backend()}, {options.precision}, {count} images, batch {options.batch}"
    print(f"{what}\n{table(found, 'bare step')}")
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in firsts.items())
    print(f"\nthe first epoch, with making the graph: {seconds}\n")
    model = ways["ours"].model
    sizes = {"evaluate (ours)": None} | {f"predict, {n}": n for n in (64, 256, 512, 1024)}
    judged: dict[str, list[float]] = {name: [] for name in sizes}
    for number in range(rounds + 1):
        for name, size in sizes.items():
            rate = judge(model, images, labels, size)
            if number:  # the first makes graphs
                judged[name].append(rate)
    print(table(judged, "evaluate (ours)"))
    if options.json:
        options.json.write_text(json.dumps({"what": what, "train": found, "judge": judged}))


if __name__ == "__main__":
    main()
