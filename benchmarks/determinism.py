"""What reproducible training costs: vgg_bn's train step with and without deterministic kernels.

python benchmarks/determinism.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

CHILD = """
import json, os, sys, time
os.environ["TF_DETERMINISTIC_OPS"] = sys.argv[1]
steps, repeats = int(sys.argv[2]), int(sys.argv[3])
import keras, numpy as np
from cnn_search.network import build_network
from cnn_search.optimisation import compile_model
from search_spaces.images import VGG_BN
keras.utils.set_random_seed(1)
model = build_network(VGG_BN.network, (32, 32, 3), 10)
compile_model(model, VGG_BN.training, steps=steps, classes=10, metrics=[])
n = 64 * steps
x = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
y = np.arange(n) % 10
fit = dict(batch_size=64, verbose=0, shuffle=False)
model.fit(x[:128], y[:128], **fit)
rates = []
for _ in range(repeats):
    start = time.perf_counter()
    model.fit(x, y, **fit)
    rates.append(n / (time.perf_counter() - start))
print(json.dumps(rates))
"""


def measure(deterministic: bool, steps: int, repeats: int) -> list[float]:
    """Return images a second of each repeat, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    arguments = [str(int(deterministic)), str(steps), str(repeats)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return list(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    steps, repeats, rounds = (5, 1, 1) if options.quick else (40, 2, 3)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):  # in turn, so that a busy moment hits both
        for deterministic in (True, False):
            rates[deterministic] += measure(deterministic, steps, repeats)
    print(f"{'kernels':15} {'n':>3} {'images/s, median':>17} {'min':>6} {'max':>6}")
    for deterministic, values in rates.items():
        name = "deterministic" if deterministic else "as they come"
        median = statistics.median(values)
        print(f"{name:15} {len(values):3} {median:17.0f} {min(values):6.0f} {max(values):6.0f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"deterministic": rates[True], "as they come": rates[False]}, file)


if __name__ == "__main__":
    main()
