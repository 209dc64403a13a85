"""Earlier sweeps: what they found, as a head start for a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_search.errors import DefinitionError
from cnn_search.ledger import Event, Trial, find_sweep, read_record, sweeps_folder
from cnn_search.spaces import outside, with_defaults

FIRST = 3  # so many of the best are trained first


def recall(
    mlruns: Path,
    name: str,
    header: Event,
    whole: Any,
    space: Any,
    besides: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what a new sweep can take from earlier ones.

    Args:
        mlruns: The folder of ledgers.
        name: Of a sweep: its newest one, or the very one with its date; or "best": all sweeps whose
            scores can be compared.
        header: Of the new sweep.
        whole: Its declared `keras_tuner.HyperParameters`.
        space: The same, narrowed.
        besides: What it tries anyway: values by name.

    Returns:
        The fields of the event "earlier": `sweeps`; `first`, the values of the best, to be trained
        first; `seen`, values, score and costs of the others, as if this sweep had trained them:
        empty where the scores are of other images, epochs or objectives, which `note` says.

    Raises:
        DefinitionError: there is no such sweep, or nothing of it fits.
    """
    records = [read_record(folder / "ledger.jsonl") for folder in _find(mlruns, name)]
    records = [record for record in records if record.header]  # a kill may leave an empty one
    if name == "best":
        records = [record for record in records if not _unlike(record.header, header)]
    if not records:
        raise DefinitionError(
            f"--warm-start {name}: expected a sweep in {sweeps_folder(mlruns)}"
            + (" with the same images, objective and [training]" if name == "best" else "")
            + "; there is none. Leave it out."
        )
    # what the space has had added since was at its default
    trials = [
        dataclasses.replace(trial, values=with_defaults(whole, trial.values))
        for record in records
        for trial in record.ranking()
    ]
    fitting = [trial for trial in trials if not outside(space, trial.values)]
    if not fitting:
        names = sorted({name for trial in trials for name in outside(space, trial.values)})
        raise DefinitionError(
            f"--warm-start {name}: expected a finished trial that is a point of this space; of "
            f"{len(trials)} there is none (other: {', '.join(names[:8]) or '-'}). Leave it out."
        )
    if len(records) > 1:
        sign = -1 if header["direction"] == "max" else 1
        fitting.sort(key=lambda trial: sign * trial.result["score"])
    new: list[Trial] = []
    for trial in fitting:
        if all(trial.values != known for known in (*besides, *(t.values for t in new))):
            new.append(trial)
    unlike = _unlike(records[0].header, header)
    return {
        "sweeps": [record.header["sweep"] for record in records],
        "first": [trial.values for trial in new[:FIRST]],
        "seen": [] if unlike else [_seen(trial) for trial in new[FIRST:]],
        "note": f"other {unlike}: its scores do not count here" if unlike else "",
    }


def _seen(trial: Trial) -> dict[str, Any]:
    return {"values": trial.values, "score": trial.result["score"], "costs": trial.costs}


def _find(mlruns: Path, name: str) -> Iterator[Path]:
    if name == "best":
        yield from sorted(file.parent for file in sweeps_folder(mlruns).glob("*/ledger.jsonl"))
    elif (sweeps_folder(mlruns) / name / "ledger.jsonl").is_file():
        yield sweeps_folder(mlruns) / name
    elif found := find_sweep(mlruns, name):
        yield found


def _unlike(one: Event, other: Event) -> str:
    """Return in words why the scores of two sweeps cannot be compared."""
    before, now = one["definition"], other["definition"]
    return ", ".join(
        what
        for what, differs in {
            "images": one["data"]["digest"] != other["data"]["digest"],
            "objective": before["objective"] != now["objective"],
            "[training]": before["training"] != now["training"],
        }.items()
        if differs
    )
