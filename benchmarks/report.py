"""What a report costs: seconds, memory and size for sweeps of 500, 1,000 and 2,000 trials.

python benchmarks/report.py [--quick] [--json FILE]

The ledgers are written by cnn_search's own writer: hyperparameters drawn from the space of digits,
curves of 20 epochs, some trials that failed, a final scoring of four models with five seeds.
Nothing is trained. Each report is made in a process of its own, from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPOCHS, SEEDS, TEST_IMAGES = 20, 5, 360
CHILD = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from cnn_search.report import page
target = page.write(Path(sys.argv[1]), Path(sys.argv[2]))
import json, resource
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
seconds = time.perf_counter() - start
found = {"seconds": seconds, "cpu_seconds": time.process_time(), "peak_bytes": peak}
print(json.dumps({**found, "page_bytes": target.stat().st_size}))
"""


def draw_values(count: int) -> Iterator[dict[str, Any]]:
    """Yield the baseline's values of digits, then random points of its space."""
    from cnn_search import backend

    backend.prepare(threads=1)
    backend.load()
    from cnn_search.training import Protocol, find_space

    space = find_space("digits")((8, 8, 1), 10, 1150, Protocol(epochs=EPOCHS))
    yield space.baseline_values("vgg_bn")
    rng = random.Random(1)
    for _ in range(count - 1):
        values: dict[str, Any] = {}
        while True:  # a value may make others active
            hp = space.hyperparameters(values)
            missing = [e for e in hp.space if hp.is_active(e) and e.name not in values]
            if not missing:
                break
            values[missing[0].name] = missing[0].random_sample(rng.randrange(2**31))
        yield values


def quality(values: dict[str, Any]) -> float:
    """Return what a configuration reaches before noise: a made-up surface, steep as real ones."""
    pooled = sum(values.get(f"pooling_{i}") == "max" for i in (1, 2, 3))
    loss = 0.04 + 0.03 * (3 - values["depth"]) + 0.02 * (pooled == 0)
    loss += 0.1 * abs(values.get("learning_rate", 1e-3) / 1e-3 - 1) ** 0.5 / 5
    loss += 0.08 * (values["optimiser"] == "sgd" and values["sgd_learning_rate"] > 0.2)
    return 0.99 - loss - 0.05 * values["head_dropout"]


def measures(values: dict[str, Any]) -> dict[str, Any]:
    """Return sizes as the network of such values has them, roughly."""
    filters = [values[f"filters_{i}"] for i in range(1, values["depth"] + 1)]
    pairs = zip([1, *filters], filters, strict=False)
    parameters = sum(9 * a * b for a, b in pairs) + 40 * filters[-1] + 1000
    return {
        "parameters": parameters,
        "trainable_parameters": parameters,
        "flops": 60 * parameters,
        "model_bytes": 4 * parameters + 60_000,
        "blocks_dropped": 0,
    }


def write_training(ledger: Any, key: dict[str, int], values: dict[str, Any], seed: int) -> None:
    """Write one training's events."""
    rng = random.Random(seed)
    ledger.append("start", **key, attempt=1, backend="tensorflow", threads=2)
    if rng.random() < 0.03 and "trial" in key and key["trial"]:
        message = "loss became nan in epoch 1; a learning rate this high does not train"
        told = {"reason": "diverged", "message": message, "traceback": "Traceback ..."}
        ledger.append("failed", **key, attempt=1, **told)
        return
    top = min(0.998, quality(values) + rng.gauss(0, 0.012))
    best, metrics = 0.0, {}
    for epoch in range(1, EPOCHS + 1):
        now = top * (1 - 0.85 * 0.75**epoch) + rng.gauss(0, 0.004)
        metrics = {"accuracy": now + 0.01, "loss": 1.2 * (1 - now), "val_accuracy": now}
        metrics |= {"val_loss": 1.3 * (1 - now), "learning_rate": 1e-3}
        best = max(best, now)
        ledger.append("epoch", **key, attempt=1, epoch=epoch, metrics=metrics, seconds=0.7)
    ledger.append(
        "done",
        **key,
        attempt=1,
        score=best,
        metrics={**metrics, "val_accuracy": best},
        best_epoch=EPOCHS,
        epochs=EPOCHS,
        **measures(values),
    )


def write_test(ledger: Any, number: int, weights: str, score: float) -> None:
    """Write a test event: some images are hard for every model."""
    import numpy as np

    from cnn_search.ledger import pack_bits

    rng = np.random.default_rng(number + 1)
    labels = np.arange(TEST_IMAGES) % 10
    hard = np.random.default_rng(0).random(TEST_IMAGES) ** 6
    correct = rng.random(TEST_IMAGES) > (1 - score) * hard / hard.mean()
    predicted = np.where(correct, labels, (labels + rng.choice([1, 5, 8], TEST_IMAGES)) % 10)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    sure = np.clip(rng.beta(9, 1, TEST_IMAGES) - 0.2 * ~correct, 0.1, 1)
    bins = np.minimum((sure * 15).astype(int), 14)
    sums = [np.bincount(bins, weight, 15).tolist() for weight in (None, sure, correct)]
    ledger.append(
        "test",
        final=number,
        weights=weights,
        accuracy=float(correct.mean()),
        loss=float(2 * (1 - correct.mean())),
        correct=pack_bits(correct),
        confusion=confusion.tolist(),
        calibration=[list(row) for row in zip(*sums, strict=True)],
        batch_seconds=2e-5 * (1 + number % 3),
        image_seconds=2e-3 * (1 + number % 3),
    )


def write_ledger(path: Path, count: int) -> None:
    """Write the ledger of a scored sweep of `count` trials."""
    from cnn_search.answer import answer
    from cnn_search.definition import Definition
    from cnn_search.ledger import Ledger, Record
    from cnn_search.surroundings import surroundings

    table = {"name": "digits", "data": "digits", "search_space": "digits", "trials": count}
    definition = Definition.model_validate({**table, "training": {"epochs": EPOCHS}})
    os.fsync = lambda file: None  # 2,000 trials are 45,000 events
    ledger = Ledger(path)
    ledger.open()
    ledger.append(
        "sweep",
        sweep="digits-20260101-000000",
        definition=definition.as_json(),
        digest="0" * 64,
        direction="max",
        data={"name": "digits", "source": "made up", "digest": "1" * 64}
        | {"class_names": list("0123456789"), "input_shape": [8, 8, 1]}
        | {"train_images": 1150, "validation_images": 288},
    )
    ledger.append("session", **surroundings())
    for number, values in enumerate(draw_values(count)):
        ledger.append(
            "ask",
            trial=number,
            values=values,
            seed=number + 1,
            epochs=EPOCHS,
            parent=None,
            source="oracle" if number else "baseline",
            baseline="" if number else "vgg_bn",
            oracle={},
        )
        write_training(ledger, {"trial": number}, values, number + 1)
    ledger.append("end", reason="finished")
    ledger.append("session", **surroundings(), job="final")
    best = [trial for trial in ledger.record.ranking() if trial.number][:3]
    book = ledger.record.trials[0]
    finalists = [{"name": "vgg_bn", "trial": 0, "baseline": "vgg_bn", "values": book.values}]
    finalists += [
        {"name": f"trial {t.number}", "trial": t.number, "baseline": "", "values": t.values}
        for t in best
    ]
    ledger.append(
        "plan",
        finalists=finalists,
        seeds=SEEDS,
        epochs=EPOCHS,
        test_digest="2" * 64,
        test_images=TEST_IMAGES,
    )
    for number in range(SEEDS * len(finalists)):
        finalist = finalists[number % len(finalists)]
        told = {"finalist": finalist["name"], "values": finalist["values"]}
        ledger.append("retrain", final=number, **told, seed=10_000 + number, epochs=EPOCHS)
        write_training(ledger, {"final": number}, finalist["values"], 10_000 + number)
    for trial in list(ledger.record.finals.values()):
        for weights in ("best", "last") if trial.finalist == "vgg_bn" else ("best",):
            write_test(ledger, trial.number, weights, trial.result["score"] - 0.01)
    ledger.append("scored", winner=finalists[1]["name"], final=1)
    ledger.append("end", reason="finished")
    ledger.close()
    assert isinstance(ledger.record, Record)
    assert answer(ledger.record)["state"] == "scored"


def measure(ledger: Path, target: Path) -> dict[str, float]:
    """Return what the report of a ledger costs, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ledger), str(target)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--keep", metavar="FOLDER", help="leave ledgers and pages there")
    options = parser.parse_args()
    counts, repeats = ([20, 40], 1) if options.quick else ([500, 1000, 2000], 3)
    found: dict[int, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for count in counts:
            ledger = folder / f"{count}.jsonl"
            ledger.unlink(missing_ok=True)
            # in a process of its own: a child would count this one's memory as its own peak
            writer = multiprocessing.get_context("spawn").Process(
                target=write_ledger, args=(ledger, count)
            )
            writer.start()
            writer.join()
            if writer.exitcode:
                sys.exit("the ledger was not written")
        for _ in range(repeats):  # in turn, so that a busy moment hits all
            for count in counts:
                target = folder / f"{count}.html"
                found.setdefault(count, []).append(measure(folder / f"{count}.jsonl", target))
    heads = ("trials", "n", "s, median", "min", "max", "CPU seconds", "peak MB", "page MB")
    print(" ".join(f"{head:>11}" for head in heads))
    for count, runs in found.items():
        seconds = sorted(run["seconds"] for run in runs)
        processor = sorted(run["cpu_seconds"] for run in runs)[len(runs) // 2]
        cells = [f"{count}", f"{len(runs)}", f"{seconds[len(runs) // 2]:.2f}"]
        cells += [f"{seconds[0]:.2f}", f"{seconds[-1]:.2f}", f"{processor:.2f}"]
        cells += [f"{max(run['peak_bytes'] for run in runs) / 1e6:.0f}"]
        cells += [f"{runs[0]['page_bytes'] / 1e6:.2f}"]
        print(" ".join(f"{cell:>11}" for cell in cells))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"time": time.time(), "runs": found}, file, indent=1)


if __name__ == "__main__":
    main()
