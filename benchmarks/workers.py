"""Trials an hour on this machine: in the command's own process, in one worker process, in more.

python benchmarks/workers.py [--quick] [--data-dir D] [--rounds N] [--json FILE]

The same random trials each time; the cores are shared out among the workers. From the first trial
that is asked for to the end of the last: imports do not count, those of the workers do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cnn_search.ledger import read_events
from cnn_search.surroundings import usable_cores

SWEEPS = {  # small networks on small images; the tutorial's, on real ones
    "digits": "--trials 8 --epochs 20 --oracle random",
    "cifar10": "--trials 6 --epochs 2 --oracle random --train-limit 3000",
}
QUICK = {"digits": "--trials 3 --epochs 2"}


def measure(name: str, options: str, workers: int, more: list[str]) -> float:
    """Return the trials an hour of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cnn_search.sweep", name, *options.split(), *more]
        command += ["--no-final", "--workers", str(workers), "--mlruns", folder]
        subprocess.run(command, check=True, capture_output=True)
        [path] = Path(folder).glob("sweeps/*/ledger.jsonl")
        times: dict[str, list[float]] = {}
        for event, _ in read_events(path):
            times.setdefault(event["kind"], []).append(event["time"])
    ended = times["done"] + times.get("failed", [])
    return 3600 * len(ended) / (max(ended) - times["ask"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny sweep, to see that it runs")
    parser.add_argument("--data-dir", help="folder with CIFAR-10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    more = ["--data-dir", options.data_dir] if options.data_dir else []
    rounds = 1 if options.quick else options.rounds
    counts = sorted({0, 1, 2, usable_cores()})
    found: dict[str, dict[int, list[float]]] = {}
    for name, what in (QUICK if options.quick else SWEEPS).items():
        rows = found[name] = {count: [] for count in counts}
        for _ in range(rounds):  # in turns, as a machine has slow hours
            for count in counts:
                own = more if name == "cifar10" else []
                rows[count].append(measure(name, what, count, own))
    print(f"{usable_cores()} cores; trials an hour")
    print(
        f"{'sweep':10} {'workers':>8} {'threads':>8} {'n':>3} {'median':>8} {'min':>8} {'max':>8}"
    )
    for name, rows in found.items():
        for count, rates in rows.items():
            threads = usable_cores() // max(1, count)
            median, low, high = statistics.median(rates), min(rates), max(rates)
            line = (
                f"{name:10} {count:8} {threads:8} {rounds:3} {median:8.0f} {low:8.0f} {high:8.0f}"
            )
            print(line)
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
