"""What it brings that freed memory stays with the process (`backend.keep_memory`).

python benchmarks/memory.py [--networks NAME ...] [--steps N] [--rounds N] [--json FILE]

Steps of CIFAR-10's networks on random images, with and without, in turn, each time in a process of
its own: what a step takes, of that in the kernel, page faults, and the most memory in use.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIRST = 5  # steps that are not measured: the graph is made, memory is warm
NETWORKS = ("vgg_bn", "fast")


def child(network: str, keeps: bool, steps: int) -> dict[str, float]:
    """Train for some steps; return what they took."""
    from cnn_search import backend
    from cnn_search.surroundings import usable_cores

    if not keeps:
        backend.keep_memory = lambda: None
    backend.prepare(usable_cores())
    backend.load()
    import keras
    import numpy as np

    from cnn_search.training import Protocol, find_space

    space = find_space("cifar10")((32, 32, 3), 10, 50_000, Protocol(1))
    recipes = space.recipe_values()
    hp = space.hyperparameters(
        recipes[network] if network in recipes else space.baseline_values(network)
    )
    model = space.build(hp)
    count = (FIRST + steps) * space.step_of(hp)[0]
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)
    marks: list[tuple[float, float, int]] = []

    def mark(batch: int, logs: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        marks.append((time.perf_counter(), used.ru_stime, used.ru_minflt))

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=mark)
    space.fit(hp, model, images, np.arange(count) % 10, epochs=1, callbacks=[watch], verbose=0)
    seconds = [b[0] - a[0] for a, b in zip(marks[FIRST - 1 :], marks[FIRST:], strict=False)]
    return {
        "step_seconds": statistics.median(seconds),
        "kernel_seconds": (marks[-1][1] - marks[FIRST - 1][1]) / steps,
        "page_faults": (marks[-1][2] - marks[FIRST - 1][2]) / steps,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        network, keeps = options.child
        print(json.dumps(child(network, keeps == "kept", options.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for network in options.networks:
            for way in ("given back", "kept"):
                command = [sys.executable, __file__, "--steps", str(options.steps)]
                done = subprocess.run(
                    [*command, "--child", network, way],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                row = json.loads(done.stdout)
                found.setdefault(f"{network}, {way}", []).append(row)
                print(f"{network}, {way}: {1000 * row['step_seconds']:,.0f} ms a step", flush=True)
    print("\n| | n | ms a step | min to max | ms in the kernel | page faults a step | most MB |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in found.items():
        steps = [1000 * row["step_seconds"] for row in rows]
        kernel, faults, most = (
            statistics.median(row[key] for row in rows)
            for key in ("kernel_seconds", "page_faults", "megabytes")
        )
        print(
            f"| {name} | {len(rows)} | {statistics.median(steps):,.0f} | {min(steps):,.0f} to "
            f"{max(steps):,.0f} | {1000 * kernel:,.0f} | {faults:,.0f} | {most:,.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
