"""Reproduction: a recorded trial, trained again with the same seed and threads, and compared."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnn_search import statistics
from cnn_search.datasets import DATASETS, Dataset, load
from cnn_search.errors import DataError
from cnn_search.recorded import LONGEST, Curve, Recorded, literal
from cnn_search.surroundings import surroundings


@dataclass(frozen=True)
class Replayed:
    """What came of training it again; the fields are those of `Recorded`."""

    curve: Curve
    score: float | None
    failure: tuple[str, ...]


def load_images(recorded: Recorded, data_dir: str | None = None) -> Dataset:
    """Return the images that a trial was trained on.

    Args:
        recorded: The trial.
        data_dir: Where the data set's archives are now; of a user's own images, their path.

    Raises:
        DataError: they cannot be had, or are others.
    """
    definition = recorded.definition
    own = definition.data not in DATASETS
    try:
        dataset = load(
            data_dir if own and data_dir else definition.data,
            data_dir=data_dir or definition.data_dir,
            train_limit=definition.train_limit,
            image_size=definition.image_size,
        )
    except DataError as error:
        raise DataError(f"{error} If they are elsewhere now, pass --data-dir.") from None
    digest = recorded.tags["data_digest"]
    if dataset.digest != digest:
        raise DataError(
            f"{recorded.title}: expected the images that it was trained on (digest {digest[:12]}, "
            f"{recorded.tags['data_source']}); received {dataset.digest[:12]}, {dataset.source}. "
            "Pass --data-dir with the place of the first."
        )
    return dataset


def differences(recorded: Recorded) -> list[str]:
    """Return what differs between then and now, of all that can change a result; imports Keras."""
    from cnn_search import backend

    now, tags = surroundings(), recorded.tags
    before = {k.removeprefix("version."): v for k, v in tags.items() if k.startswith("version.")}
    pairs = [
        (name, before.get(name), now["versions"].get(name))
        for name in sorted({*before, *now["versions"]})
    ]
    pairs += [
        (name, tags.get(f"machine.{name}"), str(now["machine"][name]))
        for name in ("processor", "cores")
    ]
    describe = backend.describe()
    pairs.append(("backend", tags.get("backend"), describe["backend"]))
    pairs.append(("commit", tags.get("git.commit"), now["git"].get("commit")))
    found = [
        f"{name}: {then or 'none'} then, {since or 'none'} now"
        for name, then, since in pairs
        if then != since
    ]
    threads = ", ".join(map(str, sorted(recorded.threads)))
    if recorded.threads != {describe["threads"]}:
        found.append(f"threads: {threads} then, {describe['threads']} now")
    dirty = {"then": tags.get("git.dirty") == "True", "now": now["git"].get("dirty")}
    if any(dirty.values()):
        when = " and ".join(when for when, is_so in dirty.items() if is_so)
        found.append(f"code: changes that were in no commit, {when}")
    return found


def train_again(recorded: Recorded, dataset: Dataset, say: Callable[[str], None]) -> Replayed:
    """Train a trial once more, from its first epoch on, in a folder that goes away again.

    Args:
        recorded: The trial.
        dataset: Its images.
        say: Told each epoch, and whether it is as recorded.
    """
    from cnn_search.subject import setup_of
    from cnn_search.training import Task, make_space, train

    curve: Curve = {}
    end: dict[str, Any] = {}

    def emit(kind: str, **fields: Any) -> None:
        if kind == "epoch":
            curve[fields["epoch"]] = fields["metrics"]
            say(_describe_epoch(recorded, fields["epoch"], fields["metrics"]))
        elif kind in ("done", "failed"):
            end.update(fields)

    with tempfile.TemporaryDirectory(prefix="cnn_search-") as folder:
        setup = setup_of(recorded.definition, Path(folder))
        setup = replace(setup, keep_state=False, checkpoint_seconds=math.inf)
        declared = {
            entry.name: entry for entry in make_space(setup, dataset).hyperparameters().space
        }
        values = {
            name: _typed(text, declared.get(name))
            for name, text in recorded.hyperparameters.items()
        }
        train(Task(0, 1, values, recorded.seed, recorded.epochs), setup, dataset, emit)
    failure = (end["reason"], end["message"][:LONGEST]) if "reason" in end else ()
    if failure and not recorded.failure:
        say(end["traceback"].rstrip())
    return Replayed(curve, end.get("score"), failure)


def _typed(text: str, declared: Any) -> Any:
    """Return the value of a hyperparameter; all values of one are of the type of its default."""
    return text if isinstance(getattr(declared, "default", None), str) else literal(text)


def _describe_epoch(recorded: Recorded, epoch: int, metrics: dict[str, float]) -> str:
    objective = recorded.definition.objective
    line = f"epoch {epoch}/{recorded.epochs} {objective} {metrics[objective]:.4f}"
    if epoch not in recorded.curve:
        return f"{line}, not on record"
    for name, value in metrics.items():
        if (was := recorded.curve[epoch].get(name)) != value:
            return f"{line}, not as recorded: {name} was {was!r}, is {value!r}"
    return f"{line}, as recorded"


def judge(recorded: Recorded, replayed: Replayed, changes: Sequence[str]) -> dict[str, Any]:
    """Return whether a trial was reproduced, as plain data ready for JSON.

    Args:
        recorded: As MLflow has it.
        replayed: What came of training it again.
        changes: What differs between then and now; see `differences`.

    Returns:
        `verdict`: "exactly", every metric of every epoch on record, and the score of the kept
            weights, are equal to the last digit;
        "within the seed spread", the score lies in the prediction interval of other seeds;
        "failed again, for the same reason"; or "not". `reproduced`, false for the last one only.
        `first_difference`: epoch, metric (or "epochs", how many there were), and its two values.
        `spread`: n, low and high of the interval; None if it cannot be had.
    """
    first = _first_difference(recorded, replayed)
    spread = None if recorded.score is None else prediction_interval(recorded.others)
    verdict = "not"
    if recorded.failure:
        if replayed.failure == recorded.failure:
            verdict = "failed again, for the same reason"
    elif not replayed.failure and first is None and recorded.score in (None, replayed.score):
        verdict = "exactly"
    elif replayed.score is not None and spread and spread[0] <= replayed.score <= spread[1]:
        verdict = "within the seed spread"
    return {
        "trial": recorded.title,
        "run": recorded.run,
        "seed": recorded.seed,
        "verdict": verdict,
        "reproduced": verdict != "not",
        "objective": recorded.definition.objective,
        "epochs": {"recorded": len(recorded.curve), "replayed": len(replayed.curve)},
        "missing_epochs": recorded.missing,
        "score": {"recorded": recorded.score, "replayed": replayed.score},
        "failure": {"recorded": " ".join(recorded.failure), "replayed": " ".join(replayed.failure)},
        "first_difference": first,
        "spread": spread and {"n": len(recorded.others), "low": spread[0], "high": spread[1]},
        "other_seeds": len(recorded.others),
        "differences": list(changes),
    }


def _first_difference(recorded: Recorded, replayed: Replayed) -> dict[str, Any] | None:
    for epoch in sorted(recorded.curve.keys() & replayed.curve.keys()):
        for name, value in replayed.curve[epoch].items():
            was = recorded.curve[epoch].get(name)
            if was != value:
                return {"epoch": epoch, "metric": name, "recorded": was, "replayed": value}
    was, now = max(recorded.curve, default=0), max(replayed.curve, default=0)
    if was != now:
        return {"epoch": min(was, now), "metric": "epochs", "recorded": was, "replayed": now}
    return None


def prediction_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """Return where one more score of the same kind lies with a probability of 95 %.

    By Student's t: the interval of their mean, times the root of n + 1. None of fewer than two.
    """
    known = statistics.seeds_interval(scores) if scores else None
    if known is None or known.high is None:
        return None
    half = (known.high - known.mean) * math.sqrt(len(scores) + 1)
    return known.mean - half, known.mean + half


def describe(result: dict[str, Any]) -> str:
    """Return what `judge` found in words, a line each."""
    verdict, epochs = result["verdict"], result["epochs"]
    said = {"not": "not reproduced"}.get(verdict, verdict)
    if verdict in ("exactly", "within the seed spread"):
        said = f"reproduced {verdict}"
    lines = [f"{result['trial']}: {said}"]
    if verdict == "exactly":
        lines.append(f"  every metric of {epochs['recorded']} epochs is equal to the last digit")
    if missing := result["missing_epochs"]:
        lines.append(f"  not on record, so not compared: epochs {', '.join(map(str, missing))}")
    lines += [f"  failed {w}: {text}" for w, text in _then_and_now(result["failure"]) if text]
    first, score = result["first_difference"], result["score"]
    if first is not None:
        lines.append(
            f"  first difference: {first['metric']} {first['recorded']!r} on record, "
            f"{first['replayed']!r} now, in epoch {first['epoch']}"
        )
    if first is not None or score["recorded"] != score["replayed"]:
        scores = [f"{text} {w}" for w, text in _then_and_now(score) if text is not None]
        if scores:
            lines.append(f"  {result['objective']} of the kept weights: {', '.join(scores)}")
        if spread := result["spread"]:
            lines.append(
                f"  95 % prediction interval of {spread['n']} other seeds: {spread['low']:.4f} to "
                f"{spread['high']:.4f}"
            )
        else:
            lines.append(
                f"  retrained with {result['other_seeds']} other seeds: too few for an interval"
            )
    if verdict != "exactly":
        lines.append(f"  what differs: {'; '.join(result['differences']) or 'nothing on record'}")
    return "\n".join(lines)


def _then_and_now(pair: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("on record", pair["recorded"]), ("now", pair["replayed"])]
