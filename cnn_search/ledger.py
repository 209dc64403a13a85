"""The ledger: the append-only record of a sweep, and the truth about it.

One JSON object a line, in the order of events, each on the disk before the next step:

    sweep     the definition, the data's digest and source          (first line, once)
    earlier   what a warm start took from earlier sweeps
    speed     what predicts the seconds of an epoch, fitted on this machine, and its error
    session   a driver starts: versions, machine, git commit, command
    ask       a trial: values, seed, fidelity, parent, who asked for it
    start     an attempt begins: backend, threads, the worker if it is another process
    epoch     its metrics and seconds
    stop      the driver tells an attempt to stop, and why
    pruned    a trial ends with an epoch, as others were better; a few batches may follow it
    refused   its network breaks the constraints, and is not trained
    done | failed | stopped | killed    how an attempt ended; a worker that died or was lost gives
              "killed" with its reason, or "failed" if the trial is not to be tried again
    champion  the best trial so far is to be registered
    plan      a final scoring begins: which configurations, how many seeds
    retrain   a configuration of the plan with a fresh seed; it starts, ends ... as a trial does, by
              its number as `final` instead of `trial`
    test      a retrained model was scored on the test part
    scored    every retrained model was; the winner is to be registered
    ablation  which change brings how much is to be found out: the changes, how many seeds
    end       the driver ends, and why

A sweep is resumed by replaying its ledger; MLflow follows it. `check` is the CRC-32 of the line
without it, `n` counts the lines: a line that was changed or lost is noticed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import math
import os
import shlex
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from cnn_search.errors import LedgerError
from cnn_search.limits import Limit, costs_of, violations

Event = dict[str, Any]
BACKWARD_AND_FORWARD = 3  # passes' worth of FLOPs a trained image: backward counts twice
DEADLY = ("died", "memory", "lost")  # reasons for which a worker ends under a trial
ENDINGS = {  # the status of a trial that does not go on, by the event that ends it
    "done": "finished",
    "pruned": "pruned",
    "failed": "failed",
    "refused": "refused",
}
ENDED = tuple(ENDINGS.values())
OPEN_ENDS = ("", "interrupted", "crashed")  # of a session: the same command goes on
IMAGES = "images"  # below a sweep's folder while it runs: what its workers map into their memory


@dataclass
class Trial:
    """One configuration at one fidelity, as the ledger has it.

    Attributes:
        number: From 0; trial 0 is the baseline.
        values: Hyperparameter values by name.
        seed, epochs, parent: See `training.Task`.
        source: Who asked for it: "baseline", "try", "earlier" (a warm start), "oracle"; or "final".
        baseline: The name of the baseline that it is, or "".
        oracle: What the oracle wants to know again at a replay (Hyperband's "tuner/..." entries).
        status: "waiting", "running", "finished", "pruned" (ended early, for others were better),
            "failed", "refused" (its network breaks the constraints), or "stopped" (it goes on
            later).
        attempt: The number of attempts so far.
        deaths: Why workers ended under it, each a word of `DEADLY`.
        curve: Metrics of each epoch, by its number from 1.
        seconds: Of each epoch, by its number.
        result: The fields of "done".
        failure: The fields of "failed"; or of "refused", as such.
        finalist: Of a retraining: whose, by its name in the plan.
        tests: Of a retraining: the fields of "test", by which weights were scored.
        recipe: Its name in the space, if it is one.
    """

    number: int
    values: dict[str, Any]
    seed: int
    epochs: int
    parent: int | None
    source: str
    baseline: str
    oracle: dict[str, Any]
    status: str = "waiting"
    attempt: int = 0
    deaths: list[str] = field(default_factory=list)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)
    finalist: str = ""
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: str = ""

    @property
    def costs(self) -> dict[Limit, float]:
        """What its network costs, if it finished."""
        result = self.result
        if not result:
            return {}
        costs = costs_of(result["parameters"], result["flops"])
        if (seconds := result.get("epoch_seconds")) is not None:
            costs["epoch_seconds"] = seconds
        return costs

    @property
    def built(self) -> dict[str, Any]:
        """Its values without those of blocks that did not fit the images, and were left out."""
        dropped, depth = self.result.get("blocks_dropped", 0), self.values.get("depth")
        if not (dropped and isinstance(depth, int)):
            return dict(self.values)
        left_out = tuple(f"_{number}" for number in range(depth - dropped + 1, depth + 1))
        kept = {name: value for name, value in self.values.items() if not name.endswith(left_out)}
        return kept | {"depth": depth - dropped}

    @property
    def training_flops(self) -> float:
        """What it trains with for each image of each epoch; a prediction may be of many views."""
        return float(BACKWARD_AND_FORWARD * self.result["flops"] / self.values.get("views", 1))

    def folder(self, sweep: Path) -> Path:
        """Return where its files are, in the folder of its sweep."""
        part = sweep / "final" if self.source == "final" else sweep
        return part / "trials" / f"{self.number:04d}"


@dataclass
class Record:
    """A sweep as its ledger tells it: every event so far, folded.

    Attributes:
        header: The event "sweep".
        earlier: The event "earlier"; empty without a warm start.
        speed: The event "speed"; empty where no constraint needs it.
        trials: Of the search, by number.
        seconds: Spent on the search, over all sessions; final scorings left out.
        session: The last event "session".
        sessions, threads, versions: How many there were; those of the last.
        champion: The trial that was last to be registered.
        end: Why the last search ended; empty while it runs.
        last_time: Of the last event.
        job: What the last session is for, "search" or "final".
        plans: Every final scoring's event "plan", the last of which holds.
        finals: Retrainings, by number.
        scored: The event "scored" of the last plan; empty before it is.
        ablation: The last event "ablation"; empty if there was none.
        scoring_end: Why the last final scoring ended; empty while it runs.
        job: Of the last session.
        command: Of the last session of the search.
    """

    header: Event = field(default_factory=dict)
    earlier: Event = field(default_factory=dict)
    speed: Event = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    seconds: float = 0.0
    session: Event = field(default_factory=dict)
    sessions: int = 0
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    champion: int | None = None
    end: str = ""
    last_time: float = 0.0
    plans: list[Event] = field(default_factory=list)
    finals: dict[int, Trial] = field(default_factory=dict)
    scored: Event = field(default_factory=dict)
    ablation: Event = field(default_factory=dict)
    scoring_end: str = ""
    job: str = ""
    command: str = ""

    def apply(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["kind"]
        if kind == "session":
            self.job = event.get("job", "search")
            if self.job == "search":
                self.command = event.get("command", "")
            self.sessions += 1
            self.session, self.versions = event, event["versions"]
            if self.job == "search":
                self.end = ""
            else:
                self.scoring_end = ""
        elif self.job == "search":
            self.seconds += max(0.0, event["time"] - self.last_time)
        self.last_time = event["time"]
        if kind == "sweep":
            self.header = event
        elif kind == "champion":
            self.champion = event["trial"]
        elif kind == "plan":
            self.plans.append(event)
            self.scored = {}
        elif kind == "retrain":
            self.finals[event["final"]] = Trial(
                event["final"],
                event["values"],
                event["seed"],
                event["epochs"],
                parent=None,
                source="final",
                baseline="",
                oracle={},
                finalist=event["finalist"],
            )
        elif kind in ("earlier", "speed", "scored", "ablation"):
            setattr(self, kind, event)
        elif kind == "end":
            if self.job == "search":
                self.end = event["reason"]
            else:
                self.scoring_end = event["reason"]
        elif kind == "ask":
            fields = ("values", "seed", "epochs", "parent", "source", "baseline", "oracle")
            self.trials[event["trial"]] = Trial(
                event["trial"],
                **{name: event[name] for name in fields},
                recipe=event.get("recipe", ""),  # older ledgers have none
            )
        elif kind != "session":
            self._apply_to_trial(self.trial_of(event), event)

    def _apply_to_trial(self, trial: Trial, event: Event) -> None:
        kind = event["kind"]
        if kind == "start":
            self.threads = event["threads"]
            trial.attempt, trial.status = event["attempt"], "running"
        elif kind == "epoch":
            trial.curve[event["epoch"]] = event["metrics"]
            trial.seconds[event["epoch"]] = event["seconds"]
        elif kind == "done":
            trial.status = "finished"
            without = ("kind", "n", "time", "trial", "final")
            trial.result = {k: v for k, v in event.items() if k not in without}
        elif kind == "failed":
            trial.status = "failed"
            trial.failure = {k: event[k] for k in ("reason", "message", "traceback")}
            if event["reason"] in DEADLY:
                trial.deaths.append(event["reason"])
        elif kind == "pruned":
            trial.status = "pruned"
        elif kind == "refused":
            trial.status = "refused"
            trial.failure = {"reason": "refused", "message": event["message"], "traceback": ""}
        elif kind in ("stopped", "killed"):
            trial.status = "stopped"
            if kind == "killed" and "reason" in event:
                trial.deaths.append(event["reason"])
        elif kind == "test":
            trial.tests[event["weights"]] = event

    def trial_of(self, event: Event) -> Trial:
        """Return the trial or retraining that an event is about."""
        return self.finals[event["final"]] if "final" in event else self.trials[event["trial"]]

    def sweep_command(self, *more: str) -> str:
        """Return the command that goes on with the search, or with "--new" begins it anew."""
        program, *arguments = shlex.split(self.command) or [""]
        if program != "sweep.py":  # run from Python, or a test
            arguments = [self.definition["name"]]
        kept = [argument for argument in arguments if argument != "--new"]
        return shlex.join(["python", "-m", "cnn_search.sweep", *kept, *more])

    @property
    def definition(self) -> dict[str, Any]:
        """The definition that the sweep was started with."""
        return self.header["definition"]  # type: ignore[no-any-return]

    @property
    def epochs(self) -> int:
        """How many epochs the search has trained."""
        return sum(len(trial.curve) for trial in self.trials.values())

    @property
    def baseline(self) -> Trial | None:
        """Trial 0, if it finished."""
        trial = self.trials.get(0)
        return trial if trial is not None and trial.status == "finished" else None

    def retrainings(self, finalist: str) -> list[Trial]:
        """Return the retrainings of a finalist of the last plan, as many as it has seeds."""
        plan = self.plans[-1]
        values = next(f["values"] for f in plan["finalists"] if f["name"] == finalist)
        return self.retrained(values, plan["seeds"])

    def retrained(self, values: Mapping[str, Any], seeds: int) -> list[Trial]:
        """Return the first retrainings with these values, in the order of their seeds."""
        return [trial for trial in self.finals.values() if trial.values == values][:seeds]

    def choice(self, ranking: Sequence[Trial]) -> Trial | None:
        """Return who of a ranking is to be registered: the best, or a cheaper one near it."""
        sign = 1 if self.header["direction"] == "max" else -1
        scores = [(sign * trial.result["score"], trial.costs) for trial in ranking]
        return ranking[choose(scores, self.definition)] if ranking else None

    def kept(self, count: int) -> list[Trial]:
        """Return whose weights are kept: the best `count`, and who near them may yet be registered.

        That is who has no better one that is as cheap: a better best may leave it the choice.
        """
        ranking = self.ranking()
        within, cost = _registry(self.definition)
        sign = 1 if self.header["direction"] == "max" else -1
        kept, cheapest = ranking[:count], math.inf
        for trial in ranking:  # the best first
            near = sign * trial.result["score"] >= sign * ranking[0].result["score"] - within
            if near and trial.costs[cost] < cheapest:
                cheapest = trial.costs[cost]
                kept += [] if trial in kept else [trial]
        return kept

    def counted(self) -> list[Trial]:
        """Return the trials that the definition's `trials` counts: all but those refused."""
        return [trial for trial in self.trials.values() if trial.status != "refused"]

    def is_ranked(self, trial: Trial) -> bool:
        """Return whether a trial finished at full fidelity, and keeps to the constraints.

        The baseline is trained though its network may break them.
        """
        limits = self.definition.get("constraints", {})
        full = trial.epochs == self.definition["training"]["epochs"]
        return trial.status == "finished" and full and not violations(trial.costs, limits)

    def lineage(self, trial: Trial) -> list[Trial]:
        """Return a trial of the search after those that it goes on from, the first one first."""
        if trial.parent is None:
            return [trial]
        return [*self.lineage(self.trials[trial.parent]), trial]

    def ranking(self) -> list[Trial]:
        """Return the trials that are ranked (see `is_ranked`), best first, each network once.

        Ties in the objective are broken by validation loss, then by fewer parameters, then by age.
        """
        maximise = self.header["direction"] == "max"
        finished = [trial for trial in self.trials.values() if self.is_ranked(trial)]

        def rank(trial: Trial) -> tuple[float, float, int, int]:
            score = trial.result["score"]
            loss, parameters = trial.result["metrics"]["val_loss"], trial.result["parameters"]
            return (-score if maximise else score, loss, parameters, trial.number)

        best: dict[str, Trial] = {}
        for trial in sorted(finished, key=rank):
            best.setdefault(json.dumps(trial.built, sort_keys=True), trial)
        return list(best.values())


def choose(
    scores: Sequence[tuple[float, Mapping[Limit, float]]], definition: Mapping[str, Any]
) -> int:
    """Return which of several is registered, by a definition's [registry].

    Args:
        scores: Score, higher is better, and costs of each; the best first.
        definition: As a ledger keeps it; an old one has no [registry].
    """
    within, cost = _registry(definition)
    near = [i for i, (score, _) in enumerate(scores) if score >= scores[0][0] - within]
    return min(near, key=lambda i: scores[i][1][cost]) if within else 0


def _registry(definition: Mapping[str, Any]) -> tuple[float, Limit]:
    table = definition.get("registry", {})
    return table.get("within", 0.0), table.get("cost", "parameters")


def pack_bits(bits: npt.NDArray[np.bool_]) -> str:
    """Return bits `(n,)` as a text for an event: base64, eight a byte."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_bits(packed: str, count: int) -> npt.NDArray[np.bool_]:
    """Return the `count` bits that were packed."""
    octets = np.frombuffer(base64.b64decode(packed), np.uint8)
    return np.unpackbits(octets, count=count).astype(bool)


class Ledger:
    """The open record of a sweep; one driver at a time holds it (see `hold`).

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = Record()
        self.notes: list[str] = []
        self._lines = 0
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Read what is there into `record`, cut a torn last line off, and open for appending.

        Raises:
            LedgerError: a line that is not the last one is damaged.
        """
        if self.path.exists():
            good = 0
            for event, end in read_events(self.path):
                self.record.apply(event)
                self._lines, good = event["n"], end
            size = self.path.stat().st_size
            if good < size:
                os.truncate(self.path, good)
                self.notes.append(
                    f"{self.path}: the last line was torn ({size - good} bytes of a write that a "
                    "kill cut short); it was cut off."
                )
        self._file = open(self.path, "ab", buffering=0)

    def append(self, kind: str, **fields: Any) -> Event:
        """Write an event; it is on the disk when this returns, and folded into `record`."""
        if self._file is None:
            raise LedgerError(f"{self.path}: expected an open ledger; an earlier write failed.")
        event = {"n": self._lines + 1, "time": round(time.time(), 3), "kind": kind, **fields}
        try:
            line = _line(event)
            if self._file.write(line) < len(line):  # the disk took a part of it, without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
            self._lines += 1
        except BaseException as error:
            self.close()  # how much is on the disk is unknown: the next open settles it
            if isinstance(error, OSError):
                raise LedgerError(
                    f"{self.path}: expected to write an event; received {error.strerror}. Make "
                    "space, then the same command goes on."
                ) from None
            raise
        written: Event = json.loads(json.dumps(event))  # as a replay will read it
        self.record.apply(written)
        return written

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(event: Event) -> bytes:
    text = json.dumps(event)
    return f'{text[:-1]}, "check": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield the events of a ledger from a byte `offset` on, each with the offset behind it.

    A last line that is not whole is left out: it is still being written, or was torn by a kill.

    Raises:
        LedgerError: a line that is not the last one is damaged, or one is missing.
    """
    number, whole = 0, offset == 0
    with open(path, "rb") as file:
        file.seek(offset)
        while line := file.readline():
            if not line.endswith(b"\n"):
                return
            event = _parse(line)
            if event is None or ((number or whole) and event["n"] != number + 1):
                where = f"line {number + 1}" if whole else f"the line at byte {offset}"
                raise LedgerError(
                    f"{path}: {where} is damaged (expected a whole JSON object with its own check; "
                    f"received {line[:60]!r}). Restore the file from a copy, or start anew with "
                    "--new."
                )
            number, offset = event["n"], offset + len(line)
            yield event, offset


def _parse(line: bytes) -> Event | None:
    head, found, tail = line.rpartition(b', "check": "')
    if not found or len(tail) != 11 or not tail.endswith(b'"}\n'):
        return None
    body = head + b"}"
    if f"{zlib.crc32(body):08x}".encode() != tail[:8]:
        return None
    event: Event = json.loads(body)
    return event


def read_record(path: Path) -> Record:
    """Return what a ledger tells, without touching it."""
    record = Record()
    for event, _ in read_events(path):
        record.apply(event)
    return record


def sweeps_folder(mlruns: Path) -> Path:
    """Return where the folders of all sweeps are."""
    return mlruns / "sweeps"


def find_sweep(mlruns: Path, name: str) -> Path | None:
    """Return the folder of the newest sweep of this name, or None."""
    ledgers = sorted(sweeps_folder(mlruns).glob("*/ledger.jsonl"))
    folders = [f.parent for f in ledgers if f.parent.name.rsplit("-", 2)[0] == name]
    return folders[-1] if folders else None


def newest_sweep(mlruns: Path) -> Path | None:
    """Return the folder of the sweep that was written to last, or None."""
    ledgers = sweeps_folder(mlruns).glob("*/ledger.jsonl")
    newest = max(ledgers, key=lambda ledger: ledger.stat().st_mtime, default=None)
    return newest.parent if newest else None


def make_folder(folder: Path) -> None:
    """Make a folder below mlruns.

    Raises:
        LedgerError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"{folder}: expected a folder that can be written; {error.strerror}. "
            "Correct it or pass --mlruns."
        ) from None


def size_of(*paths: Path) -> int:
    """Return how many bytes files and folders take; what goes away meanwhile takes none."""
    folders = (files for path in paths for files in os.walk(path))
    files = [Path(folder, name) for folder, _, names in folders for name in names]
    total = 0
    for file in (*paths, *files):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder, so that no second driver writes to it.

    Raises:
        LedgerError: another process holds it.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerError(
            f"{folder}: expected to be its only driver; another process holds it. Wait for that "
            "one or stop it; or start another sweep with --new."
        ) from None
    try:
        yield
    finally:
        lock.release()
