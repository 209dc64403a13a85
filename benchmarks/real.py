"""A search for real: this package's defaults against KerasTuner's random search, the same seconds.

python benchmarks/real.py NAME [--minutes M] [--seeds N] [--data-dir DIR] [--set KEY=VALUE ...]
    [--json FILE]

Each side is a process of its own, on the same images, split, space and epochs a trial; the seconds
begin when training does. Ours trains the tutorial's model too, within them. What counts is the best
validation score of a trial that went to its end, 0 if none did; FILE keeps it, and what is in it is
not run again.
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
from scipy import stats


def given(options: argparse.Namespace) -> list[str]:
    """Return the options that both sides get, as they were typed."""
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    return [*data, *(f"--set={pair}" for pair in options.set)]


def ours(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "cnn_search.sweep", options.name, "--no-final", "--json"]
    command += ["--minutes", str(options.minutes), "--seed", str(seed), "--trials", "100000"]
    command += ["--mlruns", str(folder), "--workers", "0", *given(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout)
    best = told["best"][0]["score"] if told["best"] else 0.0
    return {"best": best, "trials": told["trials"], "epochs": told["epochs"]}


def kerastuner(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Search in this process."""
    from cnn_search import backend, commands, datasets, definition, subject
    from cnn_search.surroundings import usable_cores

    backend.prepare(usable_cores())
    backend.load()
    import keras
    import keras_tuner

    from cnn_search.training import make_space

    changes = dict(commands.parse_pair(pair, "--set") for pair in options.set)
    sweep = definition.read(options.name, changes)
    dataset = datasets.load(
        sweep.data,
        data_dir=options.data_dir or sweep.data_dir,
        train_limit=sweep.train_limit,
        image_size=sweep.image_size,
    )
    space = make_space(subject.setup_of(sweep, folder), dataset)
    narrowed = subject.searched(sweep, space.hyperparameters())
    epochs = {"all": 0}

    class Tuner(keras_tuner.RandomSearch):
        """Its own, without the `tensorboard` that it asks for and does not declare."""

        def _configure_tensorboard_dir(self, *arguments: Any, **options: Any) -> None:
            pass

    began = time.monotonic()

    class Deadline(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            epochs["all"] += 1
            if time.monotonic() - began > 60 * options.minutes:
                raise keras_tuner.errors.FatalError("the minutes are over")

    tuner = Tuner(
        space,
        objective="val_accuracy",
        max_trials=10**5,
        # KerasTuner counts on from it with each draw: of 1 to 5 the streams run into each other
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31),
        hyperparameters=narrowed,
        tune_new_entries=False,
        max_consecutive_failed_trials=10**5,
        directory=folder,
        project_name="peer",
    )
    validation = (dataset.validation.images, dataset.validation.labels)
    try:
        tuner.search(
            dataset.train.images,
            dataset.train.labels,
            validation_data=validation,
            epochs=sweep.training.epochs,
            callbacks=[Deadline()],
            verbose=0,
        )
    except keras_tuner.errors.FatalError:
        pass
    trials = tuner.oracle.trials.values()
    scores = [trial.score for trial in trials if trial.status == "COMPLETED"]
    count = {"finished": len(scores), "failed": len(trials) - len(scores)}
    return {"best": max(scores, default=0.0), "trials": count, "epochs": epochs["all"]}


SIDES = {"ours": ours, "KerasTuner random": kerastuner}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-dir")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            found = SIDES[options.one](options, options.seeds, Path(folder))
        print("\n" + json.dumps(found))
        return
    asked = {key: getattr(options, key) for key in ("name", "minutes", "set")}
    kept: dict[str, Any] = asked | {"found": {}}
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())
        if {key: kept[key] for key in asked} != asked:
            parser.error(f"{options.json} has another comparison; name another file")
    for seed in range(1, options.seeds + 1):
        for side in SIDES:
            if f"{side}, {seed}" in kept["found"]:
                continue
            command = [sys.executable, __file__, options.name, f"--minutes={options.minutes}"]
            command += [f"--seeds={seed}", f"--one={side}", *given(options)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            kept["found"][f"{side}, {seed}"] = json.loads(done.stdout.splitlines()[-1])
            print(f"{side}, seed {seed}: {kept['found'][f'{side}, {seed}']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(kept, indent=1))
    best = {
        side: [kept["found"][f"{side}, {s}"]["best"] for s in range(1, options.seeds + 1)]
        for side in SIDES
    }
    for side, scores in best.items():
        shown = ", ".join(f"{score:.4f}" for score in sorted(scores))
        print(f"{side}: mean {statistics.mean(scores):.4f} of {shown}")
    if options.seeds > 1:
        test = stats.ttest_ind(best["ours"], best["KerasTuner random"], equal_var=False)
        interval = test.confidence_interval()
        gap = statistics.mean(best["ours"]) - statistics.mean(best["KerasTuner random"])
        print(
            f"ours is {gap:+.4f} ({interval.low:+.4f} to {interval.high:+.4f}) better; Welch, 95 %"
        )


if __name__ == "__main__":
    main()
