"""Where each second of a trial goes: one training, cut into what it does, by data set.

python benchmarks/trial.py [digits|cifar10 ...] [--data-dir D] [--images N] [--epochs N]
    [--rounds N]

The tutorial's model by the code of a sweep (`training.train`), in a process of its own each round.
Each part is timed where it is called; what is left over is called so. The parts of a step are not
told apart: for those see throughput.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHILD = "--child"


def child(name: str, data_dir: str | None, images: int, epochs: int) -> dict[str, float]:
    """Train once; return the seconds of each part."""
    began = time.perf_counter()
    from cnn_search import backend, datasets
    from cnn_search.surroundings import usable_cores

    backend.prepare(usable_cores())
    backend.load()
    from cnn_search import training

    spent: dict[str, float] = {"imports": time.perf_counter() - began}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - start

        return inner

    load = timed("images: read, sort, split", datasets.load)
    dataset = load(name, data_dir=data_dir, train_limit=images)
    import keras

    space = training.find_space(name)
    space.build = timed("network: build, compile", space.build)
    space.hyperparameters = timed("hyperparameters: declare", space.hyperparameters)
    training.save_state = timed("checkpoints", training.save_state)
    training.describe_model = timed("summary, diagram, predictions", training.describe_model)
    training.count_flops = timed("FLOPs: count", training.count_flops)
    space.finished = timed("network to keep: build", space.finished)
    keras.Model.save = timed("network to keep: write", keras.Model.save)
    marks: list[tuple[str, float]] = []

    def mark(what: str) -> Callable[..., None]:
        return lambda *given, **logs: marks.append((what, time.perf_counter()))

    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=mark("epoch"), on_train_batch_end=mark("step"), on_epoch_end=mark("end")
    )
    watch.on_test_begin, watch.on_test_end = mark("judge"), mark("judged")
    fit = space.fit

    def watched_fit(self: Any, *arguments: Any, **options: Any) -> Any:
        options["callbacks"] = [watch, *options["callbacks"]]
        return fit(self, *arguments, **options)

    space.fit = watched_fit
    kinds: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        setup = training.Setup(name, training.Protocol(epochs), Path(folder))
        values = space(
            dataset.input_shape, dataset.classes, len(dataset.train.labels), setup.protocol
        )
        book = values.baseline_values(next(iter(space.baselines)))
        task = training.Task(0, 1, book, seed=1, epochs=epochs)
        whole = timed("trial", training.train)
        whole(task, setup, dataset, lambda kind, **fields: kinds.append(f"{kind} {fields}"))
    if not kinds[-1].startswith("done"):
        raise RuntimeError(kinds[-1])
    first = True
    for (before, start), (after, end) in zip(marks, marks[1:], strict=False):
        part = ""
        if after == "step":
            part = "steps"
            if before == "epoch":
                part = "first step: make the graph" if first else "first step of later epochs"
                first = False
        elif (before, after) == ("judge", "judged"):
            part = "validation"
        if part:
            spent[part] = spent.get(part, 0.0) + end - start
    trial = spent.pop("trial")
    outside = spent["imports"] + spent["images: read, sort, split"]
    spent["the rest of the trial"] = trial - (sum(spent.values()) - outside)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["digits", "cifar10"])
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=6000, help="of the training part")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (name,) = options.names
        print(json.dumps(child(name, options.data_dir, options.images, options.epochs)))
        return
    for name in options.names:
        command = [sys.executable, __file__, name, CHILD, "--images", str(options.images)]
        command += ["--epochs", str(options.epochs)]
        command += ["--data-dir", options.data_dir] if options.data_dir else []
        found: list[dict[str, float]] = []
        for _ in range(options.rounds):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        total = statistics.median(sum(spent.values()) for spent in found)
        print(
            f"{name}, at most {options.images} images, {options.epochs} epochs, n = {len(found)}\n"
        )
        print("| part | seconds, median | min to max | of all |\n|---|---|---|---|")
        for part in dict.fromkeys(part for spent in found for part in spent):
            times = [spent.get(part, 0.0) for spent in found]
            middle = statistics.median(times)
            spread = f"{min(times):.2f} to {max(times):.2f}"
            print(f"| {part} | {middle:.2f} | {spread} | {middle / total:.1%} |")
        print()


if __name__ == "__main__":
    main()
