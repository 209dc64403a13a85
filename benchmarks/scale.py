"""How cost grows: seconds of an epoch and memory, by the number of images and by their size.

python benchmarks/scale.py [--quick] [--data-dir D] [--rounds N]

The tutorial's model of CIFAR-10, trained for one epoch in a process of its own, after two steps in
which its graphs are made. Images: of CIFAR-10, mapped from a file as a worker has them. Sizes: 640
of them, enlarged.
The exponent is that of the power law through the medians (least squares in logarithms).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (1000, 2000, 5000, 10_000, 20_000, 50_000)
SIDES = (8, 16, 32, 64, 128, 224)
SIZED = 640  # images of each size


def child(file: str) -> dict[str, float]:
    """Train on the images of a file; return the seconds of an epoch, and memory."""
    from cnn_search import backend
    from cnn_search.surroundings import usable_cores

    backend.prepare(usable_cores())
    backend.load()
    import keras
    import psutil

    from cnn_search.training import Protocol, find_space

    images = np.load(file, mmap_mode="r")
    labels = np.arange(len(images)) % 10
    keras.utils.set_random_seed(1)
    space = find_space("cifar10")(images.shape[1:], 10, len(images), Protocol(epochs=2))
    hp = space.hyperparameters({})
    model = space.build(hp)
    batch = space.configure(hp).training.batch_size
    few = batch + len(images) % batch  # a whole batch, and one as small as the epoch's last
    space.fit(hp, model, images[:few], labels[:few], epochs=1, verbose=0)
    times: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: times.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()),
    )
    space.fit(hp, model, images, labels, epochs=1, callbacks=[watch], verbose=0)
    memory = psutil.Process().memory_full_info()
    return {"seconds": times[-1] - times[-2], "own_megabytes": memory.uss / 1e6}


def measure(images: Any, rounds: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "images.npy"))
        np.save(file, images)
        command = [sys.executable, __file__, "--child", file]
        done = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for _ in range(rounds)
        ]
    return [json.loads(text.splitlines()[-1]) for text in done]


def table(what: str, found: dict[int, list[dict[str, float]]]) -> None:
    print(f"| {what} | n | seconds of an epoch, median | min to max | own memory, MB |")
    print("|---|---|---|---|---|")
    middles = []
    for value, rounds in found.items():
        seconds = [one["seconds"] for one in rounds]
        middles.append(statistics.median(seconds))
        memory = statistics.median(one["own_megabytes"] for one in rounds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"| {value:,} | {len(rounds)} | {middles[-1]:.2f} | {spread} | {memory:,.0f} |")
    exponent = np.polyfit(np.log(list(found)), np.log(middles), 1)[0]
    print(f"\nseconds grow as the {exponent:.2f}th power\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest three, one round")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    from PIL import Image

    from cnn_search import datasets

    images = datasets.load("cifar10", data_dir=options.data_dir).train.images
    rounds, first = (1, 3) if options.quick else (options.rounds, None)
    counts = {count: measure(images[:count], rounds) for count in COUNTS[:first]}
    table("images of 32x32", counts)

    def enlarged(side: int) -> Any:
        return np.stack(
            [np.asarray(Image.fromarray(image).resize((side, side))) for image in images[:SIZED]]
        )

    sides = {side: measure(enlarged(side), rounds) for side in SIDES[:first]}
    table(f"pixels a side, {SIZED} images", sides)


if __name__ == "__main__":
    main()
