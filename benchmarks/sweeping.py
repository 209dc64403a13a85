"""A small sweep in a process of its own: started, watched, and compared with an undisturbed one.

What the faults of `reliability.py` and the kills of `tests/test_kill.py` share.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from cnn_search.ledger import Event, read_events

SECONDS = 600  # until what must happen is given up; no measure of speed
DIFFER = ("n", "time", "check", "attempt", "batch_seconds", "image_seconds", "memory_bytes")
ASKS = ("ask", "champion", "plan", "retrain", "scored")
TOML = """# A small sweep to be disturbed
data = "digits"
train_limit = 150
trials = 4

[training]
epochs = 3
checkpoint_seconds = 0

[oracle]
kind = "random"

[space]
depth = 1
convolutions = 1
filters_1 = [8, 16]
padding_1 = "same"
pooling_1 = "max"
kernel = 3
batch_size = 64
optimiser = "adam"
schedule = "constant"
"""


class Sweep:
    """A small sweep in a folder of its own.

    Args:
        folder: Made if need be.
        options: Of the command.
        environment: On top of this process's.
        text: The definition.
        mlruns: Where its ledger and MLflow's store are; below the folder if not given.
        inside: A command that runs the command, as "ip netns exec NAME".
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        text: str = TOML,
        mlruns: Path | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options, self.inside = folder, options, inside
        self.mlruns = mlruns or folder / "mlruns"
        mine = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self.environment = {**mine, **(environment or {})}
        self.file = folder / "small.toml"
        self.file.write_text(text)
        self.sessions: list[int] = []

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the command as a user does, as the head of a session of its own."""
        command = [*self.inside, sys.executable, "-m", "cnn_search.sweep", str(self.file)]
        command += ["--threads", "1"]
        command += [*self.options, *more, "--mlruns", str(self.mlruns)]
        with open(self.folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        self.sessions.append(process.pid)
        return process

    def finish(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """See a run, or a new one, end well."""
        code = (process or self.start()).wait(SECONDS)
        assert code == 0, f"exit code {code}\n{self.said()[-3000:]}"

    def said(self) -> str:
        """Return what all runs so far printed."""
        return (self.folder / "log.txt").read_text(errors="replace")

    @property
    def ledger(self) -> Path | None:
        """The ledger, as soon as there is one."""
        return next(iter(self.mlruns.glob("sweeps/*/ledger.jsonl")), None)

    def events(self, *kinds: str) -> list[Event]:
        """Return the whole lines of the ledger, of some kinds only."""
        found = [event for event, _ in read_events(self.ledger)] if self.ledger else []
        return [event for event in found if not kinds or event["kind"] in kinds]

    def wait_for(
        self, process: subprocess.Popen[bytes], kind: str, count: int, trial: int | None = None
    ) -> bool:
        """Wait until the ledger has so many events of a kind ("": of any); False if it ends first.

        Reads the file as bytes, 100 times a second.
        """
        mark = f'"kind": "{kind}"'.encode() if kind else b"\n"
        if trial is not None:
            mark += f', "trial": {trial},'.encode()
        deadline = time.monotonic() + SECONDS
        while process.poll() is None:
            path = self.ledger
            if path is not None and path.read_bytes().count(mark) >= count:
                return True
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.01)
        return False


def wait_until(is_so: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Wait until something is so; return whether it came to be."""
    deadline = time.monotonic() + seconds
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return so


def living(sessions: list[int]) -> list[psutil.Process]:
    """Return the processes of these sessions that still run."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) in sessions and process.info["status"] != "zombie":
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def story(mlruns: Path) -> dict[str, Any]:
    """Return what a ledger tells, times and attempts aside; equal attempts agree on every epoch."""
    [path] = mlruns.glob("sweeps/*/ledger.jsonl")
    asks: list[Event] = []
    curves: dict[Any, Any] = {}
    results: dict[Any, Any] = {}
    for event, _ in read_events(path):
        kept = {k: v for k, v in event.items() if k not in DIFFER}
        which = ("final", event["final"]) if "final" in event else ("trial", event.get("trial"))
        if event["kind"] in ASKS:
            asks.append(kept)
        elif event["kind"] == "epoch":
            key = (*which, event["epoch"])
            assert curves.setdefault(key, event["metrics"]) == event["metrics"], key
        elif event["kind"] in ("done", "pruned", "test"):
            key = (*which, event["kind"], event.get("weights"))
            assert key not in results, f"{key} twice"
            results[key] = kept
    return {"asks": asks, "curves": curves, "results": results}


@functools.cache
def undisturbed() -> dict[str, Any]:
    """Return the story of the small sweep when nothing happens to it; run once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), "--workers", "0")
        sweep.finish()
        return story(sweep.mlruns)


def judge(sweep: Sweep, *, whole: bool = True, uri: str = "") -> tuple[int, int]:
    """Return how many trials were lost and doubled, of a sweep that was disturbed and has ended.

    Args:
        sweep: Which.
        whole: MLflow has everything, or is to have it now. False where runs were deleted.
        uri: Of the MLflow server, if it is not the sweep's own database.

    Raises:
        AssertionError: something else is not as it should be: a process or a lock is left, another
            ask comes out of the replay, a run is left running.
    """
    assert wait_until(lambda: not living(sweep.sessions), 90), living(sweep.sessions)
    before, after = undisturbed(), story(sweep.mlruns)
    wrong = {key[1] for part in ("curves", "results") for key in _unlike(before, after, part)}
    asked = [ask["trial"] for ask in after["asks"] if ask["kind"] == "ask"]
    doubled = {trial for trial, count in Counter(asked).items() if count > 1}
    doubled |= {n for n, count in _counts(sweep, "done", "failed").items() if count > 1}
    lost = wrong | {ask.get("trial") for ask in before["asks"] if ask not in after["asks"]}
    again(sweep, uri)
    if whole:
        doubled |= check_mlflow(uri or f"sqlite:///{sweep.mlruns.resolve()}/mlflow.db", sweep)
    if not lost and not doubled:
        assert after == before
    return len(lost), len(doubled)


def _unlike(before: dict[str, Any], after: dict[str, Any], part: str) -> Iterator[Any]:
    for key, value in before[part].items():
        if after[part].get(key) != value:
            yield key


def _counts(sweep: Sweep, *kinds: str) -> Counter[int]:
    return Counter(event["trial"] for event in sweep.events(*kinds))


def again(sweep: Sweep, uri: str = "") -> None:
    """Give the same command again, in this process: it replays every ask and finds nothing to do.

    So the lock is free, and MLflow gets what it has not got yet.
    """
    from cnn_search import backend, datasets, definition

    backend.prepare(1)
    backend.load()
    from cnn_search import search

    read = definition.read(str(sweep.file))
    dataset = datasets.load(read.data, train_limit=read.train_limit)
    with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": uri}):
        outcome = search.run(read, dataset, sweep.mlruns, say=print)
    assert outcome.already, "something was left to do"
    assert not outcome.undelivered, outcome.undelivered


def check_mlflow(uri: str, sweep: Sweep) -> set[int]:
    """See that no run is left running, and every attempt has one; return trials with two finals."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    statuses = {run.info.status for run in runs}
    assert statuses <= {"FINISHED", "KILLED", "FAILED"}, statuses
    ended = [run for run in runs if run.data.tags.get("final") == "true"]
    finals = Counter(int(run.data.tags["cnn_search.trial"]) for run in ended)
    results = {e["trial"]: e for e in sweep.events("done", "failed")}
    assert set(finals) == set(results), f"final runs of {set(finals)}; ended are {set(results)}"
    for run in ended:
        result = results[int(run.data.tags["cnn_search.trial"])]
        if result["kind"] == "done":
            assert run.data.metrics["best_val_accuracy"] == result["score"]
    attempts = Counter(
        (run.data.tags["cnn_search.trial"], run.data.tags["cnn_search.attempt"])
        for run in runs
        if "cnn_search.trial" in run.data.tags
    )
    begun = {(str(e["trial"]), str(e["attempt"])) for e in sweep.events("start")}
    assert set(attempts) == begun, f"attempts {set(attempts)}; begun were {begun}"
    assert set(attempts.values()) == {1}, attempts
    return {trial for trial, count in finals.items() if count > 1}
