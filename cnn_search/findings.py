"""Findings: what is wrong with a sweep, and how that is settled; the sweep, as it is examined."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, find_runs, first_line  # isort: skip
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cnn_search import tracking
from cnn_search.errors import CnnSearchError, TrackingError
from cnn_search.evidence import MARK
from cnn_search.ledger import Record, Trial, read_events


class Finding(NamedTuple):
    """Something that is not as it should be, each field in one line.

    Attributes:
        where, what: Of a sweep, a registered version, or MLflow.
        remedy: What `fix` does; where there is none, what a person may do.
        fix: Does it and returns what it did; None if it takes a person.
        note: Nothing is wrong, or nothing can be put right any more: it is only said.
    """

    where: str
    what: str
    remedy: str = ""
    fix: Callable[[], str] | None = None
    note: bool = False


def settle(finding: Finding) -> tuple[bool, str]:
    """Fix a finding; return whether that was done, and what was done or why it was not."""
    if finding.fix is None:
        return False, finding.remedy
    try:
        return True, finding.fix()
    except (CnnSearchError, MlflowException, OSError, sqlite3.Error) as error:
        return False, f"it could not be fixed: {first_line(error)}"


@dataclass
class Sweep:
    """A sweep that no driver holds: its folder, and what its ledger tells.

    Attributes:
        folder: With its ledger.
        record, versions: What the ledger tells; the libraries of each session.
        ended: Whether any session came to its end.
        size: Of the ledger in bytes, without a torn last line.
    """

    folder: Path
    record: Record = field(default_factory=Record)
    versions: list[dict[str, str]] = field(default_factory=list)
    ended: bool = False
    size: int = 0

    @property
    def name(self) -> str:
        """What its folder and its MLflow run are called."""
        return self.folder.name

    def read(self) -> None:
        """Read the ledger.

        Raises:
            LedgerError: it is damaged.
        """
        for event, end in read_events(self.folder / "ledger.jsonl"):
            self.record.apply(event)
            self.size = end
            self.ended |= event["kind"] == "end"
            if event["kind"] == "session":
                self.versions.append(event["versions"])

    def runs(self, store: Store) -> list[Run]:
        """Return its runs, the oldest first, without those that a user deleted in MLflow."""
        experiment = store.experiment_id(store.client())
        found = find_runs(store, experiment, MARK, self.name) if experiment else ()
        return sorted(found, key=lambda run: run.info.start_time)

    def trial(self, run: Run) -> Trial | None:
        """Return the trial or retraining that a run is an attempt at, if it is one."""
        tags = run.data.tags
        if "cnn_search.final" in tags:
            return self.record.finals.get(int(tags["cnn_search.final"]))
        return self.record.trials.get(int(tags.get("cnn_search.trial", -1)))

    def delivered(self) -> dict[str, Any]:
        """Return what the follower wrote down of its delivery; empty if nothing can be read."""
        try:
            state: dict[str, Any] = json.loads((self.folder / "tracking.json").read_text())
        except (OSError, ValueError):
            return {}
        return state

    def deliver(self, store: Store, *, anew: bool = False) -> str:
        """Deliver the ledger into MLflow, `anew` from its first line; what is there stays.

        Raises:
            TrackingError: MLflow does not take it.
        """
        if anew:
            (self.folder / "tracking.json").unlink(missing_ok=True)
        if problem := tracking.Follower(store, self.folder).deliver():
            raise TrackingError(problem)
        return "delivered"


def list_some(found: Sequence[str]) -> str:
    """Return the first few in words, and how many more there are."""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{', '.join(found[:3])}{more}"


def count(found: Sequence[Any], what: str) -> str:
    """Return how many there are, in words: "1 run", "2 runs"."""
    return f"{len(found)} {what}{'s' * (len(found) != 1)}"
