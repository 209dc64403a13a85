"""MLflow: the follower that carries a sweep's ledger into it, its only writer; and its reader.

The follower is a thread with a stored offset into the ledger. All times come from the ledger, and a
run is looked for by its tags before it is created: delivery can be repeated, and a slow, dead or
wiped server delays nothing and loses nothing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# read when mlflow is imported: no telemetry, and no two-minute waits for a dead server
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow  # noqa: E402

for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
import numpy as np  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset as MlflowDataset,
)
from mlflow.entities import (  # noqa: E402
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException  # noqa: E402

from cnn_search import figures  # noqa: E402
from cnn_search.errors import TrackingError  # noqa: E402
from cnn_search.ledger import Event, Record, Trial, read_events  # noqa: E402

CHAMPION = "champion"
PATIENCE_SECONDS = 20  # for a server that does not answer when the sweep has ended


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps what it is given.

    Attributes:
        uri: The tracking URI.
        experiment: Name of the experiment.
        artifacts: Location of the artifacts; None where the server decides.
    """

    uri: str
    experiment: str
    artifacts: str | None


def open_store(mlruns: Path, name: str, *, create: bool = False) -> Store:
    """Return the store of sweeps called `name`, and see that it answers.

    The user's MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME win; else it is a database and a
    folder of artifacts in `mlruns`, made here if they may be created.

    Raises:
        TrackingError: there is no database, `mlruns` cannot be written, or the server does not
            answer.
    """
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", name)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = None
    if not uri:
        database = mlruns.resolve() / "mlflow.db"
        uri, artifacts = f"sqlite:///{database}", (mlruns.resolve() / "artifacts").as_uri()
        if create:
            _create(database)
        elif not database.exists():
            raise TrackingError(
                f"{mlruns}: expected MLflow's database, mlflow.db; there is none. Run a sweep "
                "first, or pass --mlruns."
            )
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(
            f"MLflow: expected an answer from {uri}; received {_first_line(error)}. Start the "
            "server, correct MLFLOW_TRACKING_URI, or unset it to use mlruns/."
        ) from None
    return Store(uri, experiment, artifacts)


def _create(database: Path) -> None:
    """Create the database in WAL mode, before anything else opens it: half the time of a write."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA user_version=0")
        connection.close()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"{database.parent}: expected a folder that can be written; {_first_line(error)}. "
            "Correct it or pass --mlruns."
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
        return self._problem

    def deliver(self) -> str:
        """Deliver now what is not delivered yet; return why not, if it cannot be."""
        try:
            _Delivery(self.store, self.folder).run()
        except Exception as error:
            return _first_line(error)
        return ""

    def _follow(self) -> None:
        delivery: _Delivery | None = None
        give_up: float | None = None
        while True:
            closing = self._closing.is_set()
            try:
                delivery = delivery or _Delivery(self.store, self.folder)
                delivery.run()
                self._problem = ""
            except Exception as error:
                # from the stored offset again: whatever was half done is found by its tags
                delivery, self._problem = None, _first_line(error)
            if closing:
                give_up = give_up or time.monotonic() + PATIENCE_SECONDS
                if not self._problem or time.monotonic() > give_up:
                    return
                time.sleep(1)
            else:
                self._closing.wait(1 if self._problem else 0.3)


class _Delivery:
    """One connection to MLflow, and where in the ledger it stands."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.client = mlflow.MlflowClient(store.uri)
        self.state_path = folder / "tracking.json"
        self.record = Record()
        self.offset = 0
        self.runs: dict[str, str] = {}
        state = json.loads(self.state_path.read_text()) if self.state_path.exists() else {}
        if state.get("uri") == store.uri and self._exists(state["runs"].get("parent")):
            self.runs = state["runs"]
            for event, end in read_events(folder / "ledger.jsonl"):
                if end > state["offset"]:
                    break
                self.record.apply(event)
                self.offset = end

    def run(self) -> None:
        """Deliver what the ledger has beyond the offset."""
        for event, end in read_events(self.folder / "ledger.jsonl", self.offset):
            self.record.apply(event)
            handler = getattr(self, f"_on_{event['kind']}", None)
            if handler is not None:
                try:
                    handler(event)
                except MlflowException as error:
                    if not self._was_deleted(error, event):
                        raise
            self.offset = end
            partial = self.state_path.with_suffix(".partial")
            state = {"uri": self.store.uri, "offset": end, "runs": self.runs}
            partial.write_text(json.dumps(state))
            os.replace(partial, self.state_path)

    def _exists(self, run: str | None) -> bool:
        try:
            return run is not None and self.client.get_run(run) is not None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _was_deleted(self, error: MlflowException, event: Event) -> bool:
        """Return whether a user deleted the run in the UI while we write: then we leave it so."""
        if "deleted" in str(error) and "must be in the 'active'" in str(error):
            return True
        gone = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
        return gone and not self._exists(self._run_of(event))

    def _run_of(self, event: Event) -> str:
        if "attempt" not in event:
            return self.runs["parent"]
        return self.runs[f"{event['trial']}-{event['attempt']}"]

    def _find_or_create(self, key: str, tags: Mapping[str, str], name: str, start: float) -> None:
        """Set `runs[key]` to the run with our own tags, created now if there is none."""
        experiment = self.client.get_experiment_by_name(self.store.experiment)
        identity = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(self.store.experiment, self.store.artifacts)
        )
        marks = {k: v for k, v in tags.items() if k.startswith("cnn_search.")}
        query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in marks.items())
        found = self.client.search_runs([identity], query, max_results=1)
        run = found[0] if found else None
        run = run or self.client.create_run(identity, int(start * 1000), dict(tags), name)
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
            [RunTag(k, str(v)) for k, v in (tags or {}).items()],
        )

    def _on_sweep(self, event: Event) -> None:
        tags = {"cnn_search.sweep": event["sweep"], "cnn_search.kind": "sweep"}
        self._find_or_create("parent", tags, event["sweep"], event["time"])
        run, data, definition = self.runs["parent"], event["data"], event["definition"]
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
        shape = "x".join(str(side) for side in data["input_shape"])
        profile = {"train": data["train_images"], "validation": data["validation_images"]}
        source = MlflowDataset(
            name=data["name"],
            digest=data["digest"][:36],
            source_type="local",
            source=json.dumps({"description": data["source"]}),
            schema=json.dumps({"images": f"uint8 {shape}", "classes": data["class_names"]}),
            profile=json.dumps(profile),
        )
        context = InputTag("mlflow.data.context", "training and validation")
        self.client.log_inputs(run, [DatasetInput(source, [context])])

    def _on_session(self, event: Event) -> None:
        run = self.runs["parent"]
        self.client.update_run(run, "RUNNING")
        tags = {f"version.{name}": version for name, version in event["versions"].items()}
        tags |= {f"machine.{name}": value for name, value in event["machine"].items()}
        tags |= {f"git.{name}": value for name, value in event["git"].items()}
        self._log(run, tags={**tags, "command": event["command"]})
        samples = self.folder / "samples.npz"
        if samples.exists():
            with np.load(samples) as saved:
                names = self.record.header["data"]["class_names"]
                figure = figures.draw_samples(saved["images"], saved["labels"], names)
            self.client.log_artifact(run, figures.save(figure, self.folder / "samples.png"))

    def _on_start(self, event: Event) -> None:
        trial = self.record.trials[event["trial"]]
        sweep = self.record.header["sweep"]
        name = f"trial {trial.number:03d}" + (f" {trial.baseline}" if trial.baseline else "")
        tags = {
            "cnn_search.sweep": sweep,
            "cnn_search.trial": str(trial.number),
            "cnn_search.attempt": str(event["attempt"]),
            "mlflow.parentRunId": self.runs["parent"],
            "trial": str(trial.number),
            "attempt": str(event["attempt"]),
            "kind": trial.source if not trial.baseline else f"baseline {trial.baseline}",
            "threads": str(event["threads"]),
            "backend": event["backend"],
        }
        if trial.parent is not None:
            tags["promoted_from"] = str(trial.parent)
        if event["attempt"] > 1:
            name += f" attempt {event['attempt']}"
        key = f"{trial.number}-{event['attempt']}"
        self._find_or_create(key, tags, name, event["time"])
        params = {**trial.values, "epochs": trial.epochs, "seed": trial.seed}
        self._log(self.runs[key], params=params)

    def _on_epoch(self, event: Event) -> None:
        trial = self.record.trials[event["trial"]]
        objective = self.record.definition["objective"]
        values = [metrics[objective] for metrics in trial.curve.values()]
        best = max(values) if self.record.header["direction"] == "max" else min(values)
        metrics = {**event["metrics"], "epoch_seconds": event["seconds"]}
        metrics[f"best_{objective}"] = best
        self._log(self._run_of(event), metrics=metrics, at=event["time"], step=event["epoch"])

    def _on_done(self, event: Event) -> None:
        trial, run = self.record.trials[event["trial"]], self._run_of(event)
        objective = self.record.definition["objective"]
        names = ("best_epoch", "parameters", "trainable_parameters", "flops", "blocks_dropped")
        metrics = {name: event[name] for name in names}
        metrics |= {
            "seconds": sum(trial.seconds.values()),
            "model_megabytes": event["model_bytes"] / 1e6,
            f"best_{objective}": event["score"],
        }
        step = event["epochs"]
        self._log(run, metrics=metrics, tags={"final": "true"}, at=event["time"], step=step)
        for path in self._pictures(trial):
            self.client.log_artifact(run, path)
        self.client.set_terminated(run, "FINISHED", int(event["time"] * 1000))
        if ranking := self.record.ranking():
            best = ranking[0]
            self._log(
                self.runs["parent"],
                metrics={f"best_{objective}": best.result["score"]},
                tags={"best_trial": best.number},
                at=event["time"],
                step=trial.number,
            )

    def _pictures(self, trial: Trial) -> Iterable[Path]:
        """Draw what the trial left behind; return the files that become artifacts."""
        folder = self.folder / "trials" / f"{trial.number:04d}"
        title = f"trial {trial.number} {trial.baseline}".strip()
        yield figures.save(figures.draw_curves(trial.curve, title), folder / "curves.png")
        with np.load(folder / "predictions.npz") as saved:
            names = self.record.header["data"]["class_names"]
            figure = figures.draw_predictions(
                saved["images"], saved["labels"], saved["probabilities"], names
            )
        yield figures.save(figure, folder / "validation_predictions.png")
        yield folder / "configuration.json"
        yield folder / "summary.txt"
        diagrams = figures.render_diagram(folder / "diagram.dot")
        if not diagrams:
            note = folder / "diagram_missing.txt"
            note.write_text("No diagram: Graphviz (the command dot) is not installed.\n")
            diagrams = [note, folder / "diagram.dot"]
        yield from diagrams

    def _on_failed(self, event: Event) -> None:
        run = self._run_of(event)
        tags = {"final": "true", "failure": event["reason"], "failure_message": event["message"]}
        self._log(run, tags=tags)
        self.client.log_text(run, event["traceback"], "traceback.txt")
        self.client.set_terminated(run, "FAILED", int(event["time"] * 1000))

    def _on_stopped(self, event: Event) -> None:
        self.client.set_terminated(self._run_of(event), "KILLED", int(event["time"] * 1000))

    def _on_killed(self, event: Event) -> None:
        self._on_stopped(event)

    def _on_champion(self, event: Event) -> None:
        trial = self.record.trials[event["trial"]]
        run = self.runs[f"{trial.number}-{trial.attempt}"]
        for best in self.record.ranking()[: self.record.definition["keep_models"]]:
            weights = self.folder / "trials" / f"{best.number:04d}" / "model.keras"
            if weights.exists() and best.number != trial.number:
                self.client.log_artifact(self.runs[f"{best.number}-{best.attempt}"], weights)
        _register(self.client, self.record, self.folder, trial, run)

    def _on_end(self, event: Event) -> None:
        run = self.runs["parent"]
        self._log(run, tags={"ended": event["reason"], "mlflow.note.content": _note(self.record)})
        status = {"interrupted": "KILLED", "failed": "FAILED"}.get(event["reason"], "FINISHED")
        self.client.set_terminated(run, status, int(event["time"] * 1000))


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
    lines = [f"Best trials by `{objective}` (validation, not yet an answer):", ""]
    lines += [f"| trial | {objective} | parameters | |", "|---|---|---|---|"]
    baseline = record.trials.get(0)
    ranking = record.ranking()
    rows = ranking[:5] + [t for t in ranking[5:] if t is baseline]
    for trial in rows:
        score, parameters = trial.result["score"], trial.result["parameters"]
        lines.append(f"| {trial.number} | {score:.4f} | {parameters:,} | {trial.baseline} |")
    return "\n".join(lines)


def _register(
    client: mlflow.MlflowClient, record: Record, folder: Path, trial: Trial, run: str
) -> None:
    """Make the trial's model a version of the sweep's registered model, and its champion."""
    import keras
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    header = record.header
    name, data = record.definition["name"], header["data"]
    marks = {"cnn_search.sweep": header["sweep"], "cnn_search.trial": str(trial.number)}
    versions = client.search_model_versions(f"name = '{name}'")
    same = [v for v in versions if all(v.tags.get(k) == m for k, m in marks.items())]
    if not same:
        files = folder / "trials" / f"{trial.number:04d}"
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *data["input_shape"]), "image")]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data["class_names"])))]),
        )
        mlflow.set_tracking_uri(client.tracking_uri)
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.keras,
            run_id=run,
            model=keras.models.load_model(files / "model.keras"),
            signature=signature,
            # inferring them takes nine seconds, in another process
            pip_requirements=[f"keras=={keras.__version__}", "tensorflow", "mlflow"],
            metadata={"class_names": data["class_names"]},
        )
        with np.load(files / "predictions.npz") as saved:
            example = {"inputs": saved["images"][:1].tolist()}
        client.log_text(run, json.dumps(example), "example_input.json")
        client.log_text(run, json.dumps(data["class_names"]), "class_names.json")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=f"Best models of the sweep {name}.")
        score = trial.result["score"]
        tags = {
            **marks,
            "evidence": "validation",
            record.definition["objective"]: f"{score:.6f}",
            "class_names": json.dumps(data["class_names"]),
        }
        description = (
            f"Trial {trial.number} of {header['sweep']}: {record.definition['objective']} "
            f"{score:.4f} on validation images (a validation score, not yet an answer)."
        )
        same = [
            client.create_model_version(
                name,
                f"models:/{info.model_id}",
                run,
                tags,
                description=description,
                model_id=info.model_id,
            )
        ]
    client.set_registered_model_alias(name, CHAMPION, same[0].version)


def list_models(store: Store) -> list[dict[str, Any]]:
    """Return every registered model of ours: name, champion's version, its evidence, its run."""
    client = mlflow.MlflowClient(store.uri)
    models = client.search_registered_models()
    return [_describe(client, m.name) for m in models if CHAMPION in (m.aliases or {})]


def show_model(store: Store, name: str) -> dict[str, Any]:
    """Return what is known of the champion of `name`.

    Raises:
        TrackingError: there is none.
    """
    client = mlflow.MlflowClient(store.uri)
    try:
        return _describe(client, name)
    except MlflowException:
        names = [model["name"] for model in list_models(store)]
        raise TrackingError(
            f"registry: expected a model with a champion, one of {', '.join(names) or 'none yet'}; "
            f"received {name!r}. Run `python -m cnn_search.sweep {name}` first."
        ) from None


def _describe(client: mlflow.MlflowClient, name: str) -> dict[str, Any]:
    version = client.get_model_version_by_alias(name, CHAMPION)
    run = client.get_run(version.run_id or "")
    own = {k: v for k, v in version.tags.items() if not k.startswith("cnn_search.")}
    return {
        "name": name,
        "version": int(version.version),
        "alias": CHAMPION,
        "sweep": version.tags.get("cnn_search.sweep"),
        "trial": version.tags.get("cnn_search.trial"),
        "run": version.run_id,
        "uri": f"models:/{name}@{CHAMPION}",
        **{k: v for k, v in own.items() if k != "class_names"},
        "class_names": json.loads(version.tags.get("class_names", "[]")),
        "parameters": int(run.data.metrics.get("parameters", 0)),
        "hyperparameters": dict(sorted(run.data.params.items())),
    }


def pull_model(store: Store, name: str, folder: Path) -> list[Path]:
    """Write a champion's `.keras` file, class names and configuration into `folder`.

    Returns:
        The files written: `NAME.keras`, `NAME.classes.json`, `NAME.configuration.json`.

    Raises:
        TrackingError: there is no such champion, or `folder` cannot be written.
    """
    known = show_model(store, name)
    mlflow.set_tracking_uri(store.uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model = Path(mlflow.artifacts.download_artifacts(f"{known['uri']}")) / "data/model.keras"
        configuration = mlflow.artifacts.download_artifacts(
            run_id=known["run"], artifact_path="configuration.json"
        )
        files = [
            folder / f"{name}{end}" for end in (".keras", ".classes.json", ".configuration.json")
        ]
        shutil.copyfile(model, files[0])
        files[1].write_text(json.dumps(known["class_names"]) + "\n", encoding="utf-8")
        shutil.copyfile(configuration, files[2])
    except (OSError, MlflowException) as error:
        raise TrackingError(
            f"registry: expected to write {name} into {folder}; received {_first_line(error)}."
        ) from None
    return files
