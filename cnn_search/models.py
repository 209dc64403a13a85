"""Models: how a trial's gets into MLflow's registry, and is found and fetched there."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, all_pages, first_line  # isort: skip
import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import Schema, TensorSpec

from cnn_search import backend, evidence, promotion
from cnn_search.aliases import CHAMPION, PROMOTION
from cnn_search.errors import TrackingError
from cnn_search.evidence import MARK
from cnn_search.ledger import Record, Trial


def register(
    client: mlflow.MlflowClient, record: Record, folder: Path, trial: Trial, run: str
) -> str:
    """Make a trial's or retraining's model a version of the sweep's registered model, and judge it.

    One that is registered already keeps its version, and what was decided. One whose weights were
    deleted since (a better one was found) is passed over, with a tag on its run.

    Args:
        client: Of the store.
        record: The sweep, as it was when this was the best of the search, or was scored.
        folder: The sweep's folder.
        trial: The one to register.
        run: Its MLflow run.

    Returns:
        What is to be said: whether it became champion or challenger, and why (see `promotion`);
        empty where the best of a search became champion, as it does if nothing is against it.
    """
    version = _find_version(client, record, trial)
    if version is None:
        if not (trial.folder(folder) / "model.keras").exists():
            client.set_tag(run, "not_registered", "its weights are no longer on the disk")
            which = "retraining" if trial.source == "final" else "trial"
            return (
                f"{which} {trial.number} is not registered: its weights are no longer on the disk"
            )
        version = _create_version(client, record, trial.folder(folder), trial, run)
    told = promotion.decide(client, version, record.header["direction"])
    plain = trial.source != "final" and f"became {CHAMPION}:" in told
    return "" if plain else told


def _find_version(client: mlflow.MlflowClient, record: Record, trial: Trial) -> ModelVersion | None:
    marks = evidence.marks(record, trial)
    versions = client.search_model_versions(f"name = '{record.definition['name']}'")
    return next((v for v in versions if marks.items() <= v.tags.items()), None)


def link(client: mlflow.MlflowClient, record: Record, trial: Trial, run: str) -> None:
    """Tell a run which model was registered of it, and what became of that.

    Raises:
        MlflowException: the run was deleted in the UI; it is registered all the same.
    """
    version = _find_version(client, record, trial)
    if version is None:
        return
    client.set_tag(run, PROMOTION, version.tags[PROMOTION])
    outputs, model = client.get_run(run).outputs, version.tags["model_id"]
    if model not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run, [LoggedModelOutput(model, step=0)])


def _create_version(
    client: mlflow.MlflowClient, record: Record, files: Path, trial: Trial, run: str
) -> ModelVersion:
    name, data = record.definition["name"], record.header["data"]
    scores = evidence.write_scores(record) if trial.source == "final" else ""
    logged = _log_model(client, files / "model.keras", data, scores, run)
    with np.load(files / "validation_predictions.npz") as saved:
        example = {"inputs": saved["images"][:1].tolist()}
    client.log_text(run, json.dumps(example), "example_input.json")
    client.log_text(run, json.dumps(data["class_names"]), "class_names.json")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Best models of the sweep {name}.")
    tags = {**evidence.write_tags(record, trial), "model_id": logged.model_id}
    judged = evidence.describe(tags)
    if trial.source == "final":
        winner, number = record.scored["winner"], trial.number
        about = f"{winner} of {record.header['sweep']}, retraining {number}: {judged}"
    else:
        about = f"Trial {trial.number} of {record.header['sweep']}: {judged}, not yet an answer"
    return client.create_model_version(
        name,
        logged.artifact_location,  # "models:/ID" would be looked up in the global store
        run,
        tags=tags,
        description=f"{about}.",
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
    client: mlflow.MlflowClient, file: Path, data: dict[str, Any], scores: str, run: str
) -> LoggedModel:
    """Log a `.keras` file as an MLflow model of a run, its test scores beside it; return that."""
    experiment = client.get_run(run).info.experiment_id
    logged = client.create_logged_model(experiment, "model", source_run_id=run)
    _upload(client, file, data, scores, run, logged.model_id)
    client.finalize_logged_model(logged.model_id, "READY")
    return logged


def _upload(
    client: mlflow.MlflowClient, file: Path, data: dict[str, Any], scores: str, run: str, model: str
) -> None:
    if "keras" not in sys.modules:  # the doctor's: it trains nothing
        backend.load()
    import keras
    import mlflow.keras

    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent) / "model"
        mlflow.keras.save_model(
            _SavedModel(file),
            str(target),
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *data["input_shape"]), "image")]),
                outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data["class_names"])))]),
            ),
            mlflow_model=Model(run_id=run, model_uuid=model, model_id=model),
            # inferring them takes nine seconds, in another process
            pip_requirements=[f"keras=={keras.__version__}", keras.backend.backend(), "mlflow"],
            metadata={"class_names": data["class_names"]},
        )
        if scores:
            (target / evidence.SCORES).write_text(scores, encoding="utf-8")
        client.log_model_artifacts(model, str(target))


def restore(store: Store, record: Record, folder: Path, trial: Trial, version: ModelVersion) -> str:
    """Upload a version's files again, which were deleted; say that it was done.

    Args:
        store: Where.
        record: The sweep; what it judges the trial by is what judged the version.
        folder: The sweep's folder.
        trial: Whose model the version is.
        version: To restore, as what it is.
    """
    scores = evidence.write_scores(record) if trial.source == "final" else ""
    files, data = trial.folder(folder) / "model.keras", record.header["data"]
    run, model = version.run_id or "", version.tags["model_id"]
    _upload(store.client(), files, data, scores, run, model)
    return "uploaded again"


def list_models(store: Store) -> list[dict[str, Any]]:
    """Return what is known of every champion that a sweep registered."""
    client = store.client()
    return [_describe(client, version, CHAMPION) for version in _holders(client, CHAMPION)]


def _holders(client: mlflow.MlflowClient, alias: str) -> Iterator[ModelVersion]:
    """Yield the versions of ours that have an alias."""
    for model in all_pages(client.search_registered_models, max_results=1000):
        if alias in (model.aliases or {}):
            version = client.get_model_version_by_alias(model.name, alias)
            if MARK in version.tags:  # others may use the same server
                yield version


def show_model(store: Store, name: str, alias: str = CHAMPION) -> dict[str, Any]:
    """Return what is known of the version of `name` that has an alias.

    Raises:
        TrackingError: there is none.
    """
    client = store.client()
    return _describe(client, _holder(client, name, alias), alias)


def _holder(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion:
    holders = {version.name: version for version in _holders(client, alias)}
    if name in holders:
        return holders[name]
    remedy = f"Run `python -m cnn_search.sweep {name}` first"
    if alias != CHAMPION:
        remedy = "A version becomes it when it is registered and not promoted; or leave --alias out"
    raise TrackingError(
        f"registry: expected a model with a {alias}, one of {', '.join(holders) or 'none'}; "
        f"received {name!r}. {remedy}."
    )


def _describe(client: mlflow.MlflowClient, version: ModelVersion, alias: str) -> dict[str, Any]:
    tags = version.tags
    try:
        values = client.get_run(version.run_id or "").data.params
    except MlflowException:  # deleted for good; the model is not
        values = {}
    trial = tags.get("cnn_search.trial", tags.get("finalist_trial"))
    retraining = tags.get("cnn_search.final")
    return {
        "name": version.name,
        "version": int(version.version),
        "alias": alias,
        "uri": f"models:/{version.name}@{alias}",
        "sweep": tags[MARK],
        "finalist": tags.get("finalist", f"trial {trial}"),
        "trial": None if trial is None else int(trial),
        "retraining": None if retraining is None else int(retraining),
        "run": version.run_id,
        "evidence": tags["evidence"],
        "objective": tags["objective"],
        "score": float(tags[tags["objective"]]),
        "test": evidence.as_json(tags),
        "summary": evidence.describe(tags),
        "promotion": tags.get(PROMOTION, ""),
        "parameters": int(tags["parameters"]),
        "class_names": json.loads(tags["class_names"]),
        "hyperparameters": dict(sorted(values.items())),
    }


def pull_model(
    store: Store, name: str, folder: Path, alias: str = CHAMPION
) -> tuple[int, list[Path]]:
    """Write a version's `.keras` file, class names and configuration into `folder`.

    Returns:
        Its number, and the files written: `NAME.keras`, `NAME.classes.json`,
        `NAME.configuration.json`.

    Raises:
        TrackingError: no such version has the alias, its files are gone, or `folder` cannot be
            written.
    """
    version = _holder(store.client(), name, alias)
    ends = (".keras", ".classes.json", ".configuration.json")
    files = [folder / f"{name}{end}" for end in ends]
    with tempfile.TemporaryDirectory() as fetched:
        model, configuration = _fetch(store, version, fetched)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model, files[0])
            shutil.copyfile(configuration, files[2])
            files[1].write_text(version.tags["class_names"] + "\n", encoding="utf-8")
        except OSError as error:
            raise TrackingError(
                f"registry: expected to write {name} into {folder}; received {first_line(error)}. "
                "Correct it or pass another --to."
            ) from None
    return int(version.version), files


def fetch_example(store: Store, run: str, folder: Path) -> Path | None:
    """Write the body of a request, with a real image, into `folder`; None if it was deleted."""
    try:
        return Path(store.client().download_artifacts(run, "example_input.json", str(folder)))
    except Exception:  # whatever the artifacts' store raises: each has its own
        return None


def _fetch(store: Store, version: ModelVersion, folder: str) -> tuple[Path, Path]:
    """Download a version's `.keras` file and configuration into `folder`; return where they are."""
    try:
        # by its source, since "models:/..." would be looked up in the global store
        model = mlflow.artifacts.download_artifacts(
            f"{version.source}/data/model.keras", dst_path=folder, tracking_uri=store.uri
        )
        configuration = mlflow.artifacts.download_artifacts(
            run_id=version.run_id,
            artifact_path="configuration.json",
            dst_path=folder,
            tracking_uri=store.uri,
        )
    except Exception as error:  # whatever the artifacts' store raises: each has its own
        raise TrackingError(
            f"registry: expected the files of {version.name} version {version.version}; received "
            f"{first_line(error)}. If they were deleted, another version can be champion: "
            f"python -m cnn_search.registry rollback {version.name}"
        ) from None
    return Path(model), Path(configuration)
