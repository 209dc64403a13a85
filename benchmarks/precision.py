"""Does bfloat16 cost accuracy? The same trainings in float32 and mixed_bfloat16, seed by seed.

python benchmarks/precision.py [--data-dir D] [--images N] [--epochs N] [--seeds N] [--json FILE]

`fast`, the recipe of CIFAR-10, by the code of a sweep: what is compared is the validation accuracy
of the kept model, which is float32 in both. The interval is Student's, of the paired differences.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from cnn_search import backend
from cnn_search.surroundings import usable_cores

backend.prepare(usable_cores())
backend.load()

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from cnn_search import datasets  # noqa: E402
from cnn_search.training import Protocol, Setup, Task, find_space, train  # noqa: E402

PRECISIONS = ("float32", "mixed_bfloat16")


def accuracy(dataset: Any, precision: str, epochs: int, seed: int) -> tuple[float, float]:
    """Return the validation accuracy of a training, and its seconds."""
    done: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup("cifar10", Protocol(epochs), Path(folder), precision=precision)
        shape, classes = dataset.input_shape, dataset.classes
        space = find_space("cifar10")(shape, classes, len(dataset.train.labels), setup.protocol)
        task = Task(0, 1, space.recipe_values()["fast"], seed=seed, epochs=epochs)
        began = time.perf_counter()
        train(task, setup, dataset, lambda kind, **fields: done.update({kind: fields}))
    if "done" not in done:
        raise RuntimeError(f"not trained: {done}")
    return done["done"]["score"], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--images", type=int, default=10_000, help="of the training part")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    dataset = datasets.load("cifar10", data_dir=options.data_dir, train_limit=options.images)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PRECISIONS}
    for seed in range(1, options.seeds + 1):
        for name in PRECISIONS:
            found[name].append(accuracy(dataset, name, options.epochs, seed))
            print(f"seed {seed}, {name}: {found[name][-1][0]:.4f}, {found[name][-1][1]:.0f} s")
    scores = {name: np.array([score for score, _ in rows]) for name, rows in found.items()}
    difference = scores[PRECISIONS[1]] - scores[PRECISIONS[0]]
    mean, error = difference.mean(), stats.sem(difference)
    low, high = stats.t.interval(0.95, len(difference) - 1, mean, error)
    for name, rows in found.items():
        seconds = np.median([s for _, s in rows])
        print(f"{name}: {scores[name].mean():.4f}, {seconds:.0f} s (median)")
    print(f"difference {100 * mean:+.2f} points (95 % {100 * low:+.2f} to {100 * high:+.2f})")
    if options.json:
        options.json.write_text(json.dumps({"options": str(options), "found": found}))


if __name__ == "__main__":
    main()
