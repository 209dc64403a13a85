"""Models: how a trial's gets into MLflow's registry, and is found and fetched there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import Schema, TensorSpec

from cnn_search.errors import TrackingError
from cnn_search.ledger import Record, Trial
from cnn_search.store import Store, first_line

CHAMPION = "champion"
MARK = "cnn_search.sweep"  # on every version that is ours


def register(
    client: mlflow.MlflowClient, record: Record, folder: Path, trial: Trial, run: str
) -> str:
    """Make the trial's model a version of the sweep's registered model, and its champion.

    A champion of another sweep over the same images that scores better stays it. A trial that is
    registered already keeps its version. One whose weights were deleted since (a better one was
    found) is passed over, with a tag on its run.

    Args:
        client: Of the store.
        record: The sweep.
        folder: The sweep's folder.
        trial: The one to register.
        run: Its MLflow run.

    Returns:
        Why the champion is another one; empty if it is this one.
    """
    name = record.definition["name"]
    marks = {MARK: record.header["sweep"], "cnn_search.trial": str(trial.number)}
    for version in client.search_model_versions(f"name = '{name}'"):
        if marks.items() <= version.tags.items():
            break
    else:
        files = folder / "trials" / f"{trial.number:04d}"
        if not (files / "model.keras").exists():
            client.set_tag(run, "not_registered", "its weights are no longer on the disk")
            return f"trial {trial.number} is not registered: its weights are no longer on the disk"
        version = _create_version(client, record, files, trial, run, marks)
    champion = _better_champion(client, record, version)
    if champion is None:
        client.set_registered_model_alias(name, CHAMPION, version.version)
    outputs = client.get_run(run).outputs
    if not outputs or not outputs.model_outputs:
        # last: it fails for a run that was deleted in the UI
        client.log_outputs(run, [LoggedModelOutput(version.tags["model_id"], step=0)])
    if champion is None:
        return ""
    objective = record.definition["objective"]
    return (
        f"models:/{name}@{CHAMPION} stays version {champion.version}, of another sweep "
        f"({champion.tags[MARK]}): its {objective} is {champion.tags[objective]}; the best of this "
        f"one is version {version.version}"
    )


def _better_champion(
    client: mlflow.MlflowClient, record: Record, version: ModelVersion
) -> ModelVersion | None:
    """Return the present champion if it is another sweep's, comparable, and better."""
    objective = record.definition["objective"]
    try:
        champion = client.get_model_version_by_alias(version.name, CHAMPION)
    except MlflowException:
        return None  # there is none yet
    same = ("objective", "data_digest", "evidence")
    if champion.tags.get(MARK) == version.tags.get(MARK):
        return None
    if any(champion.tags.get(tag) != version.tags.get(tag) for tag in same):
        return None
    gain = float(champion.tags[objective]) - float(version.tags[objective])
    better = gain > 0 if record.header["direction"] == "max" else gain < 0
    return champion if better else None


def _create_version(
    client: mlflow.MlflowClient,
    record: Record,
    files: Path,
    trial: Trial,
    run: str,
    marks: dict[str, str],
) -> ModelVersion:
    name, objective, sweep = (
        record.definition["name"],
        record.definition["objective"],
        record.header["sweep"],
    )
    data, score = record.header["data"], trial.result["score"]
    logged = _log_model(client, files / "model.keras", data, run)
    with np.load(files / "predictions.npz") as saved:
        example = {"inputs": saved["images"][:1].tolist()}
    client.log_text(run, json.dumps(example), "example_input.json")
    client.log_text(run, json.dumps(data["class_names"]), "class_names.json")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Best models of the sweep {name}.")
    return client.create_model_version(
        name,
        logged.artifact_location,  # "models:/ID" would be looked up in the global store
        run,
        tags={
            **marks,
            "model_id": logged.model_id,
            "evidence": "validation",
            "data_digest": data["digest"],
            "objective": objective,
            objective: f"{score:.6f}",
            "parameters": str(trial.result["parameters"]),
            "class_names": json.dumps(data["class_names"]),
        },
        description=(
            f"Trial {trial.number} of {sweep}: {objective} {score:.4f} on validation images "
            "(a validation score, not yet an answer)."
        ),
        model_id=logged.model_id,
    )


class _SavedModel:
    """A `.keras` file that saves itself as a model does.

    Loading it would build its layers, and so draw from the global generators that the trial beside
    this thread draws its weights from.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self, path: str) -> None:
        shutil.copyfile(self.file, path)


def _log_model(
    client: mlflow.MlflowClient, file: Path, data: dict[str, Any], run: str
) -> LoggedModel:
    """Log a `.keras` file as an MLflow model of a run, and return that."""
    import keras
    import mlflow.keras

    backend = keras.backend.backend()
    experiment = client.get_run(run).info.experiment_id
    logged = client.create_logged_model(experiment, "model", source_run_id=run)
    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent) / "model"
        mlflow.keras.save_model(
            _SavedModel(file),
            str(target),
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *data["input_shape"]), "image")]),
                outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data["class_names"])))]),
            ),
            mlflow_model=Model(run_id=run, model_uuid=logged.model_id, model_id=logged.model_id),
            # inferring them takes nine seconds, in another process
            pip_requirements=[f"keras=={keras.__version__}", backend, "mlflow"],
            metadata={"class_names": data["class_names"]},
        )
        client.log_model_artifacts(logged.model_id, str(target))
    client.finalize_logged_model(logged.model_id, "READY")
    return logged


def list_models(store: Store) -> list[dict[str, Any]]:
    """Return what is known of every champion that a sweep registered."""
    client = store.client()
    return [_describe(client, version) for version in _champions(client)]


def _champions(client: mlflow.MlflowClient) -> Iterator[ModelVersion]:
    token: str | None = ""
    while token is not None:
        page = client.search_registered_models(max_results=1000, page_token=token or None)
        for model in page:
            if CHAMPION in (model.aliases or {}):
                version = client.get_model_version_by_alias(model.name, CHAMPION)
                if MARK in version.tags:  # others may use the same server
                    yield version
        token = page.token or None


def show_model(store: Store, name: str) -> dict[str, Any]:
    """Return what is known of the champion of `name`.

    Raises:
        TrackingError: there is none.
    """
    client = store.client()
    return _describe(client, _champion(client, name))


def _champion(client: mlflow.MlflowClient, name: str) -> ModelVersion:
    champions = {version.name: version for version in _champions(client)}
    if name not in champions:
        raise TrackingError(
            f"registry: expected a model with a champion, one of {', '.join(champions) or 'none'}; "
            f"received {name!r}. Run `python -m cnn_search.sweep {name}` first."
        )
    return champions[name]


def _describe(client: mlflow.MlflowClient, version: ModelVersion) -> dict[str, Any]:
    tags = version.tags
    try:
        values = client.get_run(version.run_id or "").data.params
    except MlflowException:  # deleted for good; the model is not
        values = {}
    return {
        "name": version.name,
        "version": int(version.version),
        "alias": CHAMPION,
        "uri": f"models:/{version.name}@{CHAMPION}",
        "sweep": tags[MARK],
        "trial": int(tags["cnn_search.trial"]),
        "run": version.run_id,
        "evidence": tags["evidence"],
        "objective": tags["objective"],
        "score": float(tags[tags["objective"]]),
        "parameters": int(tags["parameters"]),
        "class_names": json.loads(tags["class_names"]),
        "hyperparameters": dict(sorted(values.items())),
    }


def pull_model(store: Store, name: str, folder: Path) -> list[Path]:
    """Write a champion's `.keras` file, class names and configuration into `folder`.

    Returns:
        The files written: `NAME.keras`, `NAME.classes.json`, `NAME.configuration.json`.

    Raises:
        TrackingError: there is no such champion, or `folder` cannot be written.
    """
    version = _champion(store.client(), name)
    ends = (".keras", ".classes.json", ".configuration.json")
    files = [folder / f"{name}{end}" for end in ends]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as fetched:
            # by its source, since "models:/..." would be looked up in the global store
            model = mlflow.artifacts.download_artifacts(
                version.source, dst_path=f"{fetched}/model", tracking_uri=store.uri
            )
            configuration = mlflow.artifacts.download_artifacts(
                run_id=version.run_id,
                artifact_path="configuration.json",
                dst_path=fetched,
                tracking_uri=store.uri,
            )
            shutil.copyfile(Path(model) / "data" / "model.keras", files[0])
            shutil.copyfile(configuration, files[2])
        files[1].write_text(version.tags["class_names"] + "\n", encoding="utf-8")
    except (OSError, MlflowException) as error:
        raise TrackingError(
            f"registry: expected to write {name} into {folder}; received {first_line(error)}. "
            "Correct it or pass another --to."
        ) from None
    return files
