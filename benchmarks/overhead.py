"""What tracking and searching cost beside the training, for us and for the peers.

python benchmarks/overhead.py [--quick] [--only SIZE ...] [--ways WAY ...] [--rounds N]
    [--json FILE]

Every way trains the same network on the same images with the same learning rates, each in a process
of its own, one after the other. A trial's time runs from its beginning to that of the next one, the
last one's to its own end; memory is the resident memory of all its processes, sampled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cnn_search.ledger import read_events

SIZES = {"short": (8, 5), "minute": (3, 150), "fifty": (50, 1)}  # trials, epochs
RATES = [round(0.0005 * 1.02**n, 6) for n in range(50)]
KEEPS = {  # what is there afterwards, beside the score of each trial
    "bare fit": "nothing",
    "KerasTuner": "checkpoints",
    "KerasTuner, autolog": "checkpoints; curves, models in MLflow",
    "Optuna, MLflow": "scores in MLflow",
    "ours, inline": "curves, models, plots in MLflow; resumes",
    "ours, 1 worker": "curves, models, plots in MLflow; resumes",
}
TOML = """data = "digits"
trials = {trials}

[training]
epochs = {epochs}

[oracle]
kind = "grid"
over = ["learning_rate"]

[space]
shift = 0
zoom = 0
learning_rate = {rates}
"""


def mark(kind: str) -> None:
    print(json.dumps([kind, time.time()]), flush=True)


def bare_fit(train: Callable[[float], float], folder: Path, trials: int) -> None:
    for rate in RATES[:trials]:
        train(rate)


def kerastuner(train: Callable[[float], float], folder: Path, trials: int) -> None:
    import keras_tuner

    class Tuner(keras_tuner.GridSearch):
        """Its own, without the `tensorboard` that it asks for and does not declare."""

        def _configure_tensorboard_dir(self, *arguments: Any, **options: Any) -> None:
            pass

        def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> Any:
            mark("start")
            found = super().run_trial(trial, *arguments, **options)
            mark("done")
            return found

    def build(hp: Any) -> Any:
        return train.build(hp.Choice("learning_rate", RATES))  # type: ignore[attr-defined]

    tuner = Tuner(build, "val_accuracy", trials, directory=folder)
    tuner.search(**train.data)  # type: ignore[attr-defined]


def kerastuner_autolog(train: Callable[[float], float], folder: Path, trials: int) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("peer", (folder / "artifacts").as_uri())
    mlflow.set_experiment("peer")
    mlflow.keras.autolog()
    kerastuner(train, folder, trials)


def optuna_mlflow(train: Callable[[float], float], folder: Path, trials: int) -> None:
    import optuna
    from optuna_integration.mlflow import MLflowCallback

    def objective(trial: Any) -> float:
        return train(trial.suggest_categorical("learning_rate", RATES))

    sampler = optuna.samplers.TPESampler(seed=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    callback = MLflowCallback(f"sqlite:///{folder}/mlflow.db", "val_accuracy")
    study.optimize(objective, trials, callbacks=[callback])


PEERS = {
    "bare fit": bare_fit,
    "KerasTuner": kerastuner,
    "KerasTuner, autolog": kerastuner_autolog,
    "Optuna, MLflow": optuna_mlflow,
}


class Training:
    """Builds and fits the book's model for digits, as a script of one's own would."""

    def __init__(self, epochs: int) -> None:
        from cnn_search import datasets
        from cnn_search.training import Protocol
        from search_spaces.digits import Space

        digits = datasets.load("digits")
        count = len(digits.train.labels)
        self.space = Space(digits.input_shape, digits.classes, count, Protocol(epochs))
        validation = digits.validation
        self.data = {
            "x": digits.train.images,
            "y": digits.train.labels,
            "validation_data": (validation.images, validation.labels),
            "batch_size": 64,
            "epochs": epochs,
            "verbose": 0,
        }

    def build(self, rate: float) -> Any:
        values = self.space.baseline_values("vgg_bn") | {"learning_rate": rate}
        return self.space.build(self.space.hyperparameters(values))

    def __call__(self, rate: float) -> float:
        import keras

        mark("start")
        keras.utils.clear_session()
        history = self.build(rate).fit(**self.data)
        mark("done")
        return float(max(history.history["val_accuracy"]))


def watch(command: list[str], log: Path) -> tuple[float, float, list[tuple[float, int]]]:
    """Run a command; return when it began and ended, and its memory in bytes over time."""
    samples = []
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            size = 0
            for one in [whole, *whole.children(recursive=True)]:
                try:
                    size += one.memory_info().rss
                except psutil.Error:
                    continue
            samples.append((time.time(), size))
            time.sleep(0.25)
    ended = time.time()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return began, ended, samples


def measure(way: str, trials: int, epochs: int) -> dict[str, list[float]]:
    """Return seconds of each trial, before the first and after the last; megabytes a trial."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log.txt"
        if way in PEERS:
            command = [sys.executable, __file__, "--peer", way, str(trials), str(epochs), name]
            began, ended, samples = watch(command, log)
            lines = [json.loads(line) for line in log.read_text().splitlines() if line[:2] == '["']
            starts = [at for kind, at in lines if kind == "start"]
            dones = [at for kind, at in lines if kind == "done"]
        else:
            file = folder / "overhead.toml"
            # trial 0 is the tutorial's model, which moves its images: it does not count
            file.write_text(TOML.format(trials=trials + 1, epochs=epochs, rates=RATES))
            command = [sys.executable, "-m", "cnn_search.sweep", str(file), "--mlruns", name]
            command += ["--workers", "0" if way == "ours, inline" else "1"]
            began, ended, samples = watch(command, log)
            [path] = folder.glob("sweeps/*/ledger.jsonl")
            events = [event for event, _ in read_events(path)]
            starts = [event["time"] for event in events if event["kind"] == "ask"]
            dones = [event["time"] for event in events if event["kind"] == "done"]
            began, starts, dones = began + starts[1] - starts[0], starts[1:], dones[1:]
    assert len(starts) == len(dones) == trials, (way, len(starts), len(dones))
    marks = [*starts, dones[-1]]
    megabytes = [
        max(size for at, size in samples if start - 0.5 <= at <= end + 0.5) / 1e6
        for start, end in itertools.pairwise(marks)
    ]
    return {
        "seconds": [end - start for start, end in itertools.pairwise(marks)],
        "before": [starts[0] - began],
        "after": [ended - dones[-1]],
        "megabytes": megabytes,
    }


def show(size: str, found: dict[str, list[dict[str, list[float]]]]) -> None:
    trials, epochs = SIZES[size]
    print(f"\n{size}: {trials} trials of {epochs} epochs, {len(found['bare fit'])} rounds")
    head = f"{'':20} {'n':>3} {'s a trial':>10} {'min':>7} {'max':>7} {'over bare':>10}"
    print(head + f" {'before':>7} {'after':>6} {'MB':>6}  first to last fifth, s and MB")
    for way, rounds in found.items():
        seconds = [value for one in rounds for value in one["seconds"]]
        bare = statistics.median(v for one in found["bare fit"] for v in one["seconds"])
        before = statistics.median(one["before"][0] for one in rounds)
        after = statistics.median(one["after"][0] for one in rounds)
        over = 100 * (statistics.median(seconds) / bare - 1)
        line = f"{way:20} {len(seconds):3} {statistics.median(seconds):10.2f} {min(seconds):7.2f}"
        line += f" {max(seconds):7.2f} {over:+9.1f}% {before:7.1f} {after:6.1f}"
        line += f" {max(rounds[0]['megabytes']):6.0f}"
        if trials >= 10:
            for key in ("seconds", "megabytes"):
                first, last = (
                    statistics.median(v for one in rounds for v in one[key][part])
                    for part in (slice(0, trials // 5), slice(-trials // 5, None))
                )
                line += f"  {100 * (last / first - 1):+.1f}%"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=KEEPS, default=list(KEEPS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        way, trials, epochs, folder = options.peer
        PEERS[way](Training(int(epochs)), Path(folder), int(trials))
        return
    if options.quick:
        SIZES.update({name: (2, 1) for name in SIZES})
    ways = dict.fromkeys(["bare fit", *options.ways])  # what the others are compared with
    everything: dict[str, Any] = {}
    for size in options.only:
        found: dict[str, list[dict[str, list[float]]]] = {way: [] for way in ways}
        for _ in range(options.rounds):  # in turns, as a machine has slow hours
            for way in ways:
                found[way].append(measure(way, *SIZES[size]))
        show(size, found)
        everything[size] = found
        if options.json:
            Path(options.json).write_text(json.dumps(everything))
    print("\nkept:", *(f"  {way}: {what}" for way, what in KEEPS.items()), sep="\n")


if __name__ == "__main__":
    main()
