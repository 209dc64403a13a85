"""Evidence: what a registered version was judged by, written as its tags and read from them.

A version of a search has "validation" evidence: the score of one trial, the best of several. One of
a final scoring has "test" evidence: the accuracy of all retrained seeds of its configuration on the
test images, read once. Which test images each seed had right lies beside the model, as
`test_scores.json`, so that a later challenger can be compared image by image.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import first_line  # isort: skip
import mlflow
from mlflow.entities.model_registry import ModelVersion

from cnn_search import statistics
from cnn_search.errors import TrackingError
from cnn_search.ledger import Record, Trial, unpack_bits

MARK = "cnn_search.sweep"  # on every version that is ours
SCORES = "test_scores.json"


def marks(record: Record, trial: Trial) -> dict[str, str]:
    """Return the tags by which a version is found again: the weights, and what judged them.

    A retraining whose configuration is scored with more seeds later is another version then.
    """
    if trial.source != "final":
        return {MARK: record.header["sweep"], "cnn_search.trial": str(trial.number)}
    judged = " ".join(str(seed.number) for seed in _seeds(record))
    return {
        MARK: record.header["sweep"],
        "cnn_search.final": str(trial.number),
        "cnn_search.retrainings": judged,
    }


def write_tags(record: Record, trial: Trial) -> dict[str, str]:
    """Return all tags of a new version but those that MLflow's own objects give."""
    data, objective = record.header["data"], record.definition["objective"]
    tags = {
        **marks(record, trial),
        "evidence": "validation",
        "data_digest": data["digest"],
        "objective": objective,
        objective: f"{trial.result['score']:.6f}",
        "parameters": str(trial.result["parameters"]),
        "class_names": json.dumps(data["class_names"]),
    }
    return {**tags, **_test_tags(record)} if trial.source == "final" else tags


def _test_tags(record: Record) -> dict[str, str]:
    plan, winner = record.plans[-1], record.scored["winner"]
    finalist = next(f for f in plan["finalists"] if f["name"] == winner)
    values = json.dumps(finalist["values"], sort_keys=True)
    correct = _correct(record)
    accuracy = statistics.accuracy(correct)
    tags = {
        "evidence": "test",
        "finalist": winner,
        "configuration": hashlib.sha256(values.encode()).hexdigest()[:16],
        "seeds": str(len(correct)),
        "test_digest": plan["test_digest"],
        "test_images": str(plan["test_images"]),
        "test_accuracy": f"{accuracy.mean:.6f}",
    }
    if finalist["trial"] is not None:
        tags["finalist_trial"] = str(finalist["trial"])
    if accuracy.low is not None and accuracy.high is not None:
        tags |= {
            "test_accuracy_low": f"{accuracy.low:.6f}",
            "test_accuracy_high": f"{accuracy.high:.6f}",
        }
    return tags


def _seeds(record: Record) -> list[Trial]:
    """Return the winner's retrainings that were scored, with the weights that the protocol keeps.

    One that failed has no score.
    """
    kept = record.definition["training"]["weights"]
    return [t for t in record.retrainings(record.scored["winner"]) if kept in t.tests]


def _correct(record: Record) -> npt.NDArray[np.bool_]:
    """Return which test images the winner's seeds have right, `(seeds, images)`."""
    kept, images = record.definition["training"]["weights"], record.plans[-1]["test_images"]
    return np.stack([unpack_bits(t.tests[kept]["correct"], images) for t in _seeds(record)])


def write_scores(record: Record) -> str:
    """Return what `read_scores` reads, as JSON; the bits are `ledger.pack_bits`'s."""
    kept, plan = record.definition["training"]["weights"], record.plans[-1]
    seeds = [
        {
            "retraining": trial.number,
            "seed": trial.seed,
            "validation": trial.result["score"],
            "accuracy": trial.tests[kept]["accuracy"],
            "correct": trial.tests[kept]["correct"],
        }
        for trial in _seeds(record)
    ]
    about = {"sweep": record.header["sweep"], "finalist": record.scored["winner"], "weights": kept}
    images = {"test_digest": plan["test_digest"], "test_images": plan["test_images"]}
    return json.dumps({**about, **images, "seeds": seeds}, indent=1)


def read_scores(client: mlflow.MlflowClient, version: ModelVersion) -> npt.NDArray[np.bool_]:
    """Return which test images each seed of a version has right, `(seeds, images)`.

    Raises:
        TrackingError: they are not in the store any more, or damaged.
        MlflowException: the server does not answer.
    """
    try:
        with tempfile.TemporaryDirectory() as fetched:
            file = mlflow.artifacts.download_artifacts(
                f"{version.source}/{SCORES}", dst_path=fetched, tracking_uri=client.tracking_uri
            )
            told = json.loads(Path(file).read_text(encoding="utf-8"))
        packed = [seed["correct"] for seed in told["seeds"]]
        return np.stack([unpack_bits(bits, told["test_images"]) for bits in packed])
    except Exception as error:  # whatever the artifacts' store raises: each has its own
        client.get_registered_model(version.name)  # raises if it is the server that is away
        if not _is_lost(error):  # it may be had another time
            raise
        raise TrackingError(
            f"the test scores of version {version.version} cannot be read ({first_line(error)})"
        ) from None


def _is_lost(error: Exception) -> bool:
    """Return whether a file is not there any more or damaged, as far as its store tells."""
    said = str(error).lower()
    gone = any(word in said for word in ("no such", "nosuchkey", "not found", "404"))
    return gone or isinstance(error, ValueError | LookupError | TypeError)


def describe(tags: Mapping[str, str]) -> str:
    """Return a version's evidence in words, from its tags."""
    if tags.get("evidence") != "test" or "test_accuracy" not in tags:
        objective = tags["objective"]
        return f"{objective} {float(tags[objective]):.4f} (evidence: {tags['evidence']})"
    interval = "no interval"
    if "test_accuracy_low" in tags:
        low, high = (_short(float(tags[f"test_accuracy_{end}"])) for end in ("low", "high"))
        interval = f"95 % {low} to {high}"
    seeds = f"{tags['seeds']} seed{'s' * (tags['seeds'] != '1')}"
    return (
        f"test accuracy {float(tags['test_accuracy']):.4f} ({interval}, {seeds}, "
        f"{int(tags['test_images']):,} images)"
    )


def _short(share: float) -> str:
    return f"{share:.3f}".removeprefix("0")


def as_json(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a version's test evidence as plain data, None if it has none; from its tags."""
    if "test_accuracy" not in tags:
        return None
    ends = {end: tags.get(f"test_accuracy_{end}") for end in ("low", "high")}
    return {
        "accuracy": float(tags["test_accuracy"]),
        **{end: None if share is None else float(share) for end, share in ends.items()},
        "seeds": int(tags["seeds"]),
        "images": int(tags["test_images"]),
        "digest": tags["test_digest"],
    }
