"""python -m cnn_search.baseline NAME: a tutorial's model alone, trained as the tutorial does.

Or a recipe of the space, on all training images, to be compared with it.

The one command beside the final scoring that reads the test part: once, after the last epoch.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from cnn_search import commands
from cnn_search.definition import Definition, Precision, read
from cnn_search.errors import DataError, DefinitionError
from cnn_search.ledger import hold, make_folder
from cnn_search.surroundings import usable_cores

SHAPES = {
    "cifar10": ((32, 32, 3), 10),
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "signs": ((64, 64, 3), 6),
}


@click.command()
@click.argument("name", required=False)
@click.option("--which", help="A baseline of the data set [its first], or a recipe.")
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Instead of the tutorial's; a recipe has 10."
)
@click.option(
    "--try",
    "changes",
    default="",
    metavar="NAME=VALUE ...",
    help="Hyperparameters that differ from its own: --try 'batch_size=128 dropout_1=0'.",
)
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--data-dir", help="Folder with the data set's archives.")
@click.option("--train-limit", type=click.IntRange(min=1), help="Use so many training images.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the training [all cores].")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="What training computes in, instead of the sweep's.",
)
@click.option("--new", is_flag=True, help="Train again, though a result is on record.")
@click.option("--list", "list_", is_flag=True, help="Show every baseline.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@commands.mlruns_option()
def main(
    name: str | None,
    which: str | None,
    epochs: int | None,
    changes: str,
    seed: int,
    data_dir: str | None,
    train_limit: int | None,
    threads: int | None,
    precision: str | None,
    new: bool,
    list_: bool,
    as_json: bool,
    mlruns: Path,
) -> None:
    """Train a tutorial's model under its own protocol, and score it on the test part once.

    NAME is a sweep's: cifar10, digits, fashion_mnist, signs or one's own TOML file, of which the
    data, the space and the precision count. A run that was cut short goes on from its last
    checkpoint; a result on record is printed again, and the test part is not read.
    """
    from cnn_search import backend

    if list_:
        backend.prepare(1)
        backend.load()
        rows = list(describe_baselines())
        click.echo(json.dumps(rows, indent=2) if as_json else _table(rows))
        return
    if name is None:
        raise click.UsageError("Missing argument NAME; --list shows every baseline.")
    given = {
        "data_dir": data_dir,
        "train_limit": train_limit,
        "training.precision": precision,
    }
    definition = read(name, {k: v for k, v in given.items() if v is not None})
    pairs = dict(commands.parse_pair(pair, "--try") for pair in changes.split())
    backend.prepare(threads or usable_cores())
    backend.load()
    result = run(definition, which, mlruns, epochs, seed, changes=pairs, new=new)
    click.echo(json.dumps(result, indent=2) if as_json else describe_result(result))


def choices(space: Any) -> dict[str, Any]:
    """Return a space's baselines and recipes; these have all images and their last weights."""
    from cnn_search.training import Baseline, Protocol

    alone = Protocol(epochs=10, weights="last")
    recipes = {
        name: Baseline(recipe, alone, None, tutorial="", published="none: a recipe of the space")
        for name, recipe in getattr(space, "recipes", {}).items()
    }
    # a hypermodel's only baseline is its defaults, which are no configuration of ours
    return {name: known for name, known in space.baselines.items() if known} | recipes


def describe_baselines() -> Iterator[dict[str, Any]]:
    """Yield every baseline: data set, name, parameters of the built model, what was published."""
    from cnn_search.network import build_network
    from cnn_search.training import find_space

    for data, (shape, classes) in SHAPES.items():
        for name, baseline in choices(find_space(data)).items():
            model = build_network(baseline.configuration.network, shape, classes)
            trainable = sum(w.numpy().size for w in model.trainable_weights)
            yield {
                "data": data,
                "baseline": name,
                "parameters": model.count_params(),
                "trainable": int(trainable),
                "published": baseline.published,
                "tutorial": baseline.tutorial,
            }


def run(
    definition: Definition,
    which: str | None,
    mlruns: Path,
    epochs: int | None = None,
    seed: int = 1,
    *,
    changes: Mapping[str, Any] | None = None,
    new: bool = False,
) -> dict[str, Any]:
    """Train one baseline under its tutorial's protocol and return its result.

    Raises:
        CnnSearchError: no such baseline, no data, or the training failed.
    """
    import dataclasses

    from cnn_search import datasets
    from cnn_search.spaces import complete
    from cnn_search.training import Protocol, Setup, Task, make_space

    load = functools.partial(
        datasets.load,
        definition.data,
        data_dir=definition.data_dir,
        train_limit=definition.train_limit,
        image_size=definition.image_size,
    )
    dataset = load(validation="first_tenth")
    setup = Setup(definition.search_space, Protocol(1), mlruns)
    known = choices(make_space(setup, dataset))
    which = which or next(iter(known), "")
    if which not in known:
        there = f"one of {', '.join(known)}" if known else "a space with baselines"
        raise DefinitionError(f"baseline: --which expected {there}; received {which!r}.")
    baseline = known[which]
    if baseline.validation != "first_tenth":
        dataset = load(validation=baseline.validation)
    protocol = dataclasses.replace(baseline.protocol, epochs=epochs or baseline.protocol.epochs)
    precision = definition.training.precision
    changed = dict(sorted((changes or {}).items()))
    trained = zlib.crc32(repr((baseline.configuration, precision, changed)).encode())
    images = f"{dataset.digest[:8]}-{dataset.test_digest()[:8]}"
    mark = f"{which}-{protocol.epochs}-{seed}-{images}-{trained:08x}"
    folder = mlruns / "baselines" / f"{definition.name}-{mark}"
    setup = dataclasses.replace(
        setup, protocol=protocol, folder=folder, precision=precision, both_weights=True
    )
    made = make_space(setup, dataset)
    recipes = made.recipe_values()
    values = recipes[which] if which in recipes else made.baseline_values(which)
    values = complete(made.hyperparameters(), values, changed)
    make_folder(folder)
    with hold(folder):
        record = folder / "result.json"
        if new:
            record.unlink(missing_ok=True)
            shutil.rmtree(folder / "trials", ignore_errors=True)
        if record.exists():
            return json.loads(record.read_text())  # type: ignore[no-any-return]
        about = {"data": definition.name, "baseline": which, "changes": changed, "seed": seed}
        task = Task(0, 1, values, seed, protocol.epochs, recorded=0)
        result = about | _train(task, setup, dataset)
        result |= {
            "tutorial": baseline.tutorial,
            "published": baseline.published,
            "published_test_accuracy": baseline.test_accuracy,
            "differs": _why(dataset, baseline, protocol, changed) if baseline.tutorial else [],
        }
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(partial, record)
        for left in ("checkpoint.npz", "best.keras", "last.keras"):
            (setup.trial_folder(0) / left).unlink(missing_ok=True)
    return result


def _train(task: Any, setup: Any, dataset: Any) -> dict[str, Any]:
    """Train, tell each epoch on stderr, and return what came of it, the test scores too."""
    from cnn_search.training import train

    events: list[dict[str, Any]] = []

    def emit(kind: str, **fields: Any) -> None:
        events.append({"kind": kind, **fields})
        if kind == "epoch":
            shown = "  ".join(f"{k} {v:.4f}" for k, v in fields["metrics"].items())
            line = f"epoch {fields['epoch']}/{task.epochs}  {shown}  {fields['seconds']:.1f} s"
            click.echo(line, err=True)

    train(task, setup, dataset, emit)
    last = events[-1]
    if last["kind"] == "stopped":
        raise DataError(
            f"baseline: expected space for {setup.folder}; the disk is full. Make space, then the "
            "same command goes on."
        )
    if last["kind"] != "done":
        click.echo(last["traceback"], err=True)
        raise DataError(f"baseline: training failed: {last['message']}")
    return {
        "epochs": last["epochs"],
        "seconds": round(sum(e["seconds"] for e in events if e["kind"] == "epoch"), 1),
        "parameters": last["parameters"],
        "train_images": len(dataset.train.labels),
        "validation_images": len(dataset.validation.labels),
        "test_images": len(dataset.test.labels),
        "training": {k: v for k, v in last["metrics"].items() if not k.startswith("val_")},
        "validation": {k: v for k, v in last["metrics"].items() if k.startswith("val_")},
        "test": _score(setup, dataset),
    }


def _score(setup: Any, dataset: Any) -> dict[str, dict[str, float]]:
    """Score the last and, where images validated, the best weights on the test part."""
    import keras
    import numpy as np

    folder = setup.trial_folder(0)
    files = {setup.protocol.weights: folder / "model.keras"}
    other = "best" if setup.protocol.weights == "last" else "last"
    if len(dataset.validation.labels):
        files[other] = folder / f"{other}.keras"
    scores = {}
    for weights, path in files.items():
        model = keras.models.load_model(path)
        probabilities = model.predict(dataset.test.images, batch_size=512, verbose=0)
        true = probabilities[np.arange(len(dataset.test.labels)), dataset.test.labels]
        right = probabilities.argmax(axis=1) == dataset.test.labels
        scores[f"{weights} weights"] = {
            "accuracy": float(right.mean()),
            "loss": float(-np.log(np.maximum(true, 1e-7)).mean()),
        }
    return scores


def _why(dataset: Any, baseline: Any, protocol: Any, changed: Mapping[str, Any]) -> list[str]:
    """Return why the result may differ from the published one."""
    reasons = ["the seed: the tutorial's is unknown, and one run of each says little"]
    if baseline.validation == "first_tenth":
        reasons.append("the tenth that validates: ours is the first by hash, not by position")
    if "watches the test part" in baseline.published:
        reasons.append("the test part: the tutorial looks at it each epoch, here once at the end")
    if changed:
        reasons.append(f"what you changed: {_said(changed)}")
    if protocol.epochs != baseline.protocol.epochs:
        reasons.append(f"the epochs: {protocol.epochs} instead of {baseline.protocol.epochs}")
    if baseline.test_accuracy is None:
        reasons.append("the published result is none, or not comparable")
    return [*reasons, *dataset.notes]


def _said(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def describe_result(result: dict[str, Any]) -> str:
    """Return a baseline's result in words, beside the published one."""
    name = f"{result['data']}/{result['baseline']}"
    if result.get("changes"):
        name += f" with {_said(result['changes'])}"
    lines = [
        f"{name}: {result['parameters']:,} parameters, "
        f"{result['epochs']} epochs, {result['seconds']:.0f} s, seed {result['seed']}",
        f"trained on {result['train_images']:,} images, validated on "
        f"{result['validation_images']:,}, tested once on {result['test_images']:,}",
    ]
    lines += [
        f"test, {weights}: accuracy {100 * score['accuracy']:.2f} %, loss {score['loss']:.4f}"
        for weights, score in result["test"].items()
    ]
    if result["tutorial"]:
        lines.append(f"the tutorial ({result['tutorial']}): {result['published']}")
    lines += [f"may differ by {reason}" for reason in result["differs"]]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'baseline':30} {'parameters':>10} {'trainable':>10}  published"]
    for row in rows:
        name = f"{row['data']}/{row['baseline']}"
        lines.append(
            f"{name:30} {row['parameters']:>10,} {row['trainable']:>10,}  {row['published']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    commands.start(main, "baseline")
