"""How many events a second the driver takes: a sweep of trials that train nothing.

python benchmarks/driver.py [--quick] [--json FILE]

An engine in this process answers each trial at once with its epochs. What is measured is the loop:
oracle, ledger (each event on the disk before the next), progress, and the thread that follows into
a real MLflow. From it follows at how many workers the driver is the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cnn_search import backend

backend.prepare(1)
backend.load()

from cnn_search import datasets, definition, driver, search  # noqa: E402
from cnn_search.engines import Engine  # noqa: E402
from cnn_search.training import Stop, Task  # noqa: E402

EPOCHS = 25  # of a trial
SECONDS = (10, 60, 600)  # that a trial might take


class NoTraining(Engine):
    """Ends every trial in the moment that it is submitted; final."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self._slots = slots

    def start(self) -> None:
        pass

    def slots(self) -> int:
        return self._slots

    def submit(self, task: Task) -> None:
        def tell(kind: str, **fields: Any) -> None:
            self.events.put((kind, {"trial": task.trial, "attempt": task.attempt, **fields}))

        metrics = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
        tell("start", backend="none", threads=1)
        for epoch in range(1, task.epochs + 1):
            tell("epoch", epoch=epoch, metrics=metrics, seconds=1.0)
        counts = {"parameters": 1, "trainable_parameters": 1, "flops": 1, "model_bytes": 1}
        told = {"best_epoch": 1, "epochs": task.epochs, "blocks_dropped": 0, **counts}
        tell("done", score=0.5, metrics=metrics, **told)

    def stop(self, when: Stop, trial: int | None = None) -> None:
        pass

    def kill(self, trial: int) -> None:
        raise AssertionError("nothing runs")

    def close(self, wait: bool) -> None:
        pass


def measure(slots: int, trials: int) -> dict[str, float]:
    """Return what a sweep of so many trials takes with so many slots, MLflow's share apart."""
    changes = {"trials": trials, "training.epochs": EPOCHS, "keep_models": 1}
    sweep = definition.read("digits", changes)
    dataset = datasets.load("digits", train_limit=100)
    driver.make_engine = lambda *arguments: NoTraining(slots)
    ended: list[float] = []

    def watch(record: Any, event: Any) -> None:
        if event["kind"] == "end":
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = search.run(sweep, dataset, Path(folder), on_event=watch)
        whole = time.perf_counter() - start
        lines = (outcome.folder / "ledger.jsonl").read_bytes().count(b"\n")
    loop = ended[0] - start
    return {"events": lines, "per_second": lines / loop, "mlflow_seconds": whole - loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few trials, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    trials, rounds = (20, 1) if options.quick else (200, 3)
    rows = {}
    print(f"{'slots':>6} {'n':>3} {'events/s':>9} {'min':>7} {'max':>7}   MLflow behind, s")
    for slots in (1, 10, 1000):
        found = [measure(slots, trials) for _ in range(rounds)]
        rates = [row["per_second"] for row in found]
        behind = statistics.median(row["mlflow_seconds"] for row in found)
        rows[slots] = {"per_second": rates, "mlflow_seconds": behind}
        median, low, high = statistics.median(rates), min(rates), max(rates)
        print(f"{slots:6} {rounds:3} {median:9.0f} {low:7.0f} {high:7.0f}   {behind:.1f}")
    rate = statistics.median(rows[1000]["per_second"])
    print(f"\nThe driver is the limit at (trials of {EPOCHS} epochs, {EPOCHS + 3} events):")
    for seconds in SECONDS:
        print(f"  {rate * seconds / (EPOCHS + 3):8.0f} workers, if a trial takes {seconds} s")
    if options.json:
        Path(options.json).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
