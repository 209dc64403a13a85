"""Tracking: the follower that carries a sweep's ledger into MLflow, the only writer of runs.

The follower is a thread with a stored offset into the ledger. All times come from the ledger, and a
run is looked for by its tags before it is created: delivery can be repeated, and a slow, dead or
wiped server delays nothing and loses nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, first_line, open_store  # isort: skip
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.types import Schema, TensorSpec

from cnn_search import figures, models, views
from cnn_search.answer import answer
from cnn_search.ledger import Event, Record, Trial, read_events
from cnn_search.progress import changes

__all__ = ["Follower", "Store", "open_store"]

LONGEST_TAG = 5000  # characters; what every MLflow takes without a warning
PATIENCE_SECONDS = 20  # for a server that does not answer when the sweep has ended


class Follower:
    """Carries a sweep's ledger into MLflow, in a thread of its own; final.

    Args:
        store: Where to.
        folder: The sweep's folder.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._closing = threading.Event()
        self._problem = ""
        self._notes: set[str] = set()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def close(self, say: Callable[[str], None]) -> str:
        """Wait until all is delivered; return why it is not, if the server never came back."""
        self._closing.set()
        self._thread.join(timeout=1)
        if self._thread.is_alive():
            say("Writing the last of it into MLflow ...")
        self._thread.join()
        if self._notes:
            say("\n".join(f"note: {note}" for note in sorted(self._notes)))
        return self._problem

    def deliver(self) -> str:
        """Deliver now what is not delivered yet; return why not, if it cannot be."""
        try:
            _Delivery(self.store, self.folder, self._notes).run()
        except Exception as error:
            return first_line(error)
        return ""

    def _follow(self) -> None:
        delivery: _Delivery | None = None
        give_up: float | None = None
        while True:
            closing = self._closing.is_set()
            try:
                delivery = delivery or _Delivery(self.store, self.folder, self._notes)
                delivery.run()
                self._problem = ""
            except Exception as error:
                # from the stored offset again: whatever was half done is found by its tags
                delivery, self._problem = None, first_line(error)
            if closing:
                give_up = give_up or time.monotonic() + PATIENCE_SECONDS
                if not self._problem or time.monotonic() > give_up:
                    return
                time.sleep(1)
            else:
                self._closing.wait(1 if self._problem else 0.3)


class _Delivery:
    """One connection to MLflow, and where in the ledger it stands."""

    def __init__(self, store: Store, folder: Path, notes: set[str]) -> None:
        self.store, self.folder, self.notes = store, folder, notes
        self.client = store.client()
        self.state_path = folder / "tracking.json"
        self.record = Record()
        self.offset = 0
        # "parent", "final", "trial-attempt" or "final-retraining-attempt" -> run
        self.runs: dict[str, str] = {}
        state = _read_state(self.state_path)
        if state.get("uri") == store.address and self._exists(state["runs"].get("parent")):
            self.runs = state["runs"]
            for event, end in read_events(folder / "ledger.jsonl"):
                if end > state["offset"]:
                    break
                self.record.apply(event)
                self.offset = end

    def run(self) -> None:
        """Deliver what the ledger has beyond the offset."""
        handlers: dict[str, list[Callable[[Event], None]]] = {
            "sweep": [self._open_parent],
            "session": [self._begin_session],
            "start": [self._open_attempt],
            "epoch": [self._log_epoch],
            "done": [self._log_best, self._end_finished],
            "failed": [self._end_failed],
            "pruned": [self._end_early],
            "refused": [self._end_early],
            "stopped": [self._end_killed],
            "killed": [self._end_killed],
            "champion": [self._register],
            "plan": [self._open_final],
            "test": [self._log_test],
            "scored": [self._register, self._log_answer],
            "end": [self._log_weights, self._log_ledger, self._end_session],
        }
        for event, end in read_events(self.folder / "ledger.jsonl", self.offset):
            self.record.apply(event)
            for handle in handlers.get(event["kind"], []):
                try:
                    handle(event)
                except MlflowException as error:
                    if not self._was_deleted(error):
                        raise
            self.offset = end
            partial = self.state_path.with_suffix(".partial")
            state = {"uri": self.store.address, "offset": end, "runs": self.runs}
            partial.write_text(json.dumps(state))
            os.replace(partial, self.state_path)

    def _exists(self, run: str | None) -> bool:
        try:
            return run is not None and self.client.get_run(run) is not None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _was_deleted(self, error: MlflowException) -> bool:
        """Return whether a user deleted the run in the UI while we write: then we leave it so."""
        gone = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        if gone and not self._exists(self.runs.get("parent")):
            return False  # the whole store is: everything is delivered anew
        if gone or "must be in the 'active' state" in str(error):
            which = next((key for key, run in self.runs.items() if run in str(error)), "another")
            self.notes.add(f"run {which} was deleted in MLflow, and is left so")
            return True
        return False

    def _run_of(self, event: Event) -> str:
        trial = self.record.trial_of(event)
        return self.runs[_key(trial, event.get("attempt", trial.attempt))]

    def _find_or_create(self, key: str, tags: Mapping[str, str], name: str, start: float) -> None:
        """Set `runs[key]` to the run with our own tags, created now if there is none."""
        experiment = self.store.experiment_id(self.client) or self.client.create_experiment(
            self.store.experiment, self.store.artifacts
        )
        marks = {k: v for k, v in tags.items() if k.startswith("cnn_search.")}
        query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in marks.items())
        found = self.client.search_runs([experiment], query, ViewType.ALL, max_results=1)
        run = found[0] if found else None
        run = run or self.client.create_run(experiment, int(start * 1000), dict(tags), name)
        self.runs[key] = run.info.run_id

    def _log(
        self,
        run: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        at: float = 0.0,
        step: int = 0,
    ) -> None:
        self.client.log_batch(
            run,
            [Metric(k, float(v), int(at * 1000), step) for k, v in (metrics or {}).items()],
            [Param(k, str(v)) for k, v in (params or {}).items()],
            [RunTag(k, str(v)[:LONGEST_TAG]) for k, v in (tags or {}).items()],
        )

    def _open_parent(self, event: Event) -> None:
        tags = {"cnn_search.sweep": event["sweep"], "cnn_search.kind": "sweep"}
        self._find_or_create("parent", tags, event["sweep"], event["time"])
        run, data, definition = self.runs["parent"], event["data"], event["definition"]
        experiment = self.store.experiment_id(self.client)
        views.save(self.client, str(experiment), definition["objective"])
        self._log(
            run,
            params=_flat({k: v for k, v in definition.items() if v not in (None, [], {})}),
            tags={
                "data": data["name"],
                "data_source": data["source"],
                "data_digest": data["digest"],
                "definition_digest": event["digest"],
            },
        )
        images = TensorSpec(np.dtype("uint8"), (-1, *data["input_shape"]), "images")
        labels = TensorSpec(np.dtype("int64"), (-1,), "labels")
        counts = ("train_images", "validation_images", "class_names")
        source = Dataset(
            name=data["name"],
            digest=data["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": data["source"]}),
            schema=json.dumps(TensorDatasetSchema(Schema([images]), Schema([labels])).to_dict()),
            profile=json.dumps({name: data[name] for name in counts}),
        )
        context = InputTag("mlflow.data.context", "training and validation")
        self.client.log_inputs(run, [DatasetInput(source, [context])])
        samples = self.folder / "samples.npz"
        if samples.exists():
            with np.load(samples) as saved:
                names = data["class_names"]
                figure = figures.draw_samples(saved["images"], saved["labels"], names)
            self.client.log_artifact(run, figures.save(figure, self.folder / "samples.png"))

    def _begin_session(self, event: Event) -> None:
        run = self.runs["parent"]
        self.client.update_run(run, "RUNNING")
        self._log(run, tags={**_surroundings(event), "command": event["command"]})

    def _open_final(self, event: Event) -> None:
        """Open the run whose children are the retrainings; its description is the last plan."""
        sweep = self.record.header["sweep"]
        tags = {
            "cnn_search.sweep": sweep,
            "cnn_search.kind": "final",
            "mlflow.parentRunId": self.runs["parent"],
            "kind": "final scoring",
        }
        self._find_or_create("final", tags, "final scoring", event["time"])
        self.client.update_run(self.runs["final"], "RUNNING")
        names = [finalist["name"] for finalist in event["finalists"]]
        told = {"finalists": ", ".join(names), "seeds": event["seeds"]}
        told |= {"test_digest": event["test_digest"], "test_images": event["test_images"]}
        self._log(self.runs["final"], tags=told)

    def _open_attempt(self, event: Event) -> None:
        trial = self.record.trial_of(event)
        final = "final" in event
        tags = {
            "cnn_search.sweep": self.record.header["sweep"],
            "cnn_search.final" if final else "cnn_search.trial": str(trial.number),
            "cnn_search.attempt": str(event["attempt"]),
            "mlflow.parentRunId": self.runs["final" if final else "parent"],
            "attempt": str(event["attempt"]),
            "threads": str(event["threads"]),
            "backend": event["backend"],
            "outcome": "running",
            **_surroundings(self.record.session),
        }
        if final:
            tags |= {"kind": "final", "finalist": trial.finalist}
            name = f"final {trial.number:03d} {trial.finalist}"
        else:
            tags |= {"trial": str(trial.number), "changed": changes(self.record, trial)}
            kind = "baseline" if trial.baseline else trial.source
            called = trial.baseline or trial.recipe
            tags["kind"] = f"{kind} {called}".strip()
            name = f"trial {trial.number:03d} {called}".strip()
        if trial.parent is not None:
            tags["promoted_from"] = str(trial.parent)
        if event["attempt"] > 1:
            name += f" attempt {event['attempt']}"
        key = _key(trial, event["attempt"])
        self._find_or_create(key, tags, name, event["time"])
        params = {**trial.values, "epochs": trial.epochs, "seed": trial.seed}
        self._log(self.runs[key], params=params)

    def _log_epoch(self, event: Event) -> None:
        trial = self.record.trial_of(event)
        objective = self.record.definition["objective"]
        values = [metrics[objective] for metrics in trial.curve.values()]
        best = max(values) if self.record.header["direction"] == "max" else min(values)
        metrics = {**event["metrics"], "epoch_seconds": event["seconds"]}
        metrics[f"best_{objective}"] = best
        self._log(self._run_of(event), metrics=metrics, at=event["time"], step=event["epoch"])

    def _log_best(self, event: Event) -> None:
        if "trial" in event and (ranking := self.record.ranking()):
            best = ranking[0]
            self._log(
                self.runs["parent"],
                metrics={f"best_{self.record.definition['objective']}": best.result["score"]},
                tags={"best_trial": best.number},
                at=event["time"],
                step=event["trial"],
            )

    def _end_finished(self, event: Event) -> None:
        trial, run = self.record.trial_of(event), self._run_of(event)
        names = ("best_epoch", "parameters", "trainable_parameters", "flops", "blocks_dropped")
        metrics = {name: event[name] for name in names}
        metrics |= {
            "seconds": round(sum(trial.seconds.values()), 1),
            "model_megabytes": event["model_bytes"] / 1e6,
            "memory_megabytes": event.get("memory_bytes", 0) / 1e6,
            f"best_{self.record.definition['objective']}": event["score"],
        }
        step = event["epochs"]
        tags = {"final": "true", "outcome": "finished"}
        self._log(run, metrics=metrics, tags=tags, at=event["time"], step=step)
        title = trial.finalist or f"trial {trial.number} {trial.baseline}".strip()
        class_names = self.record.header["data"]["class_names"]
        files, missing = figures.draw_trial(self._folder(trial), trial.curve, title, class_names)
        for file in files:
            self.client.log_artifact(run, file)
        if missing:
            self.client.log_text(run, "\n".join(missing) + "\n", "missing.txt")
        self.client.set_terminated(run, "FINISHED", int(event["time"] * 1000))

    def _folder(self, trial: Trial) -> Path:
        return trial.folder(self.folder)

    def _end_failed(self, event: Event) -> None:
        run = self._run_of(event)
        tags = {"failure": event["reason"], "failure_message": event["message"]}
        self._log(run, tags={"final": "true", "outcome": f"failed: {event['reason']}", **tags})
        self.client.log_text(run, event["traceback"], "traceback.txt")
        self.client.set_terminated(run, "FAILED", int(event["time"] * 1000))

    def _end_early(self, event: Event) -> None:
        run = self._run_of(event)
        if event["kind"] == "pruned":
            told = {"pruned_after": event["epoch"], "outcome": f"pruned after {event['epoch']}"}
        else:
            told = {"refused": event["message"], "outcome": "refused"}
        self._log(run, tags={"final": "true", **told})
        self.client.set_terminated(run, "KILLED", int(event["time"] * 1000))

    def _end_killed(self, event: Event) -> None:
        run = self._run_of(event)
        told = {"outcome": "stopped"}
        if "reason" in event:
            told = {"failure": event["reason"], "failure_message": event.get("message", "")}
            told["outcome"] = f"stopped: {event['reason']}"
        self._log(run, tags=told)
        self.client.set_terminated(run, "KILLED", int(event["time"] * 1000))

    def _log_test(self, event: Event) -> None:
        trial, run = self.record.trial_of(event), self._run_of(event)
        kept = event["weights"] == self.record.definition["training"]["weights"]
        end = "" if kept else f"_{event['weights']}_weights"
        metrics = {f"test_accuracy{end}": event["accuracy"], f"test_loss{end}": event["loss"]}
        self._log(run, metrics=metrics, at=event["time"], step=trial.epochs)
        shown = self._folder(trial) / "test_predictions.npz"
        if kept and shown.exists():
            names = self.record.header["data"]["class_names"]
            self.client.log_artifact(run, figures.draw_saved(shown.parent, "test", names))

    def _log_answer(self, event: Event) -> None:
        """Say the answer where the table of runs shows it."""
        found = answer(self.record)
        rows = {row["name"]: row for row in found["rows"]}
        metrics = {"test_accuracy": rows[found["winner"]]["accuracy"]["mean"]}
        if found["baseline"]:
            metrics["baseline_test_accuracy"] = rows[found["baseline"]]["accuracy"]["mean"]
        tags = {"winner": found["winner"], "answer": found["sentence"]}
        self._log(self.runs["parent"], metrics=metrics, tags=tags, at=event["time"])

    def _register(self, event: Event) -> None:
        trial = self.record.trial_of(event)
        run = self._run_of(event)
        if told := models.register(self.client, self.record, self.folder, trial, run):
            self.notes.add(told)
        models.link(self.client, self.record, trial, run)  # last: the run may be deleted

    def _end_session(self, event: Event) -> None:
        run = self.runs["parent"]
        ended = "scoring_ended" if self.record.job == "final" else "ended"
        self._log(run, tags={ended: event["reason"], "mlflow.note.content": _note(self.record)})
        status = {"interrupted": "KILLED", "failed": "FAILED", "crashed": "FAILED"}.get(
            event["reason"], "FINISHED"
        )
        self.client.set_terminated(run, status, int(event["time"] * 1000))
        if self.record.job == "final" and "final" in self.runs:
            self.client.set_terminated(self.runs["final"], status, int(event["time"] * 1000))

    def _log_ledger(self, event: Event) -> None:
        """Leave the ledger itself, from which the report can be made anywhere."""
        self.client.log_artifact(self.runs["parent"], self.folder / "ledger.jsonl")

    def _log_weights(self, event: Event) -> None:
        """Log the weights of the best few; the champion's are in the registered model."""
        if event["reason"] == "interrupted" or self.record.job == "final":
            return
        for best in self.record.ranking():
            weights = self._folder(best) / "model.keras"
            if weights.exists() and best.number != self.record.champion:
                self.client.log_artifact(self.runs[f"{best.number}-{best.attempt}"], weights)


def _surroundings(session: Event) -> dict[str, str]:
    """Return versions, machine and git commit of a session as tags."""
    groups = {"version": "versions", "machine": "machine", "git": "git"}
    return {
        f"{group}.{name}": str(value)
        for group, field in groups.items()
        for name, value in session.get(field, {}).items()
    }


def _key(trial: Trial, attempt: int) -> str:
    return f"{'final-' if trial.source == 'final' else ''}{trial.number}-{attempt}"


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _note(record: Record) -> str:
    """Return the parent run's description, in Markdown."""
    objective = record.definition["objective"]
    lines = [answer(record)["sentence"], ""]
    lines += [f"Best trials by `{objective}` (of validation, the best of several):", ""]
    lines += [f"| trial | {objective} | parameters | |", "|---|---|---|---|"]
    baseline = record.baseline
    rows = record.ranking()[:5]
    rows += [baseline] if baseline and baseline not in rows else []
    for trial in rows:
        score, parameters = trial.result["score"], trial.result["parameters"]
        lines.append(f"| {trial.number} | {score:.4f} | {parameters:,} | {trial.baseline} |")
    return "\n".join(lines)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or torn by a crash: all is delivered anew
        return {}
    return state
