"""Discrepancies: where MLflow has not what the ledger of a sweep tells: runs, artifacts, versions.

The ledger is the truth. Checks look at MLflow as late as they can: whoever fixes a finding before
asking for the next one is not told its consequences.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, all_pages  # isort: skip
import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cnn_search import evidence, models
from cnn_search.aliases import CHAMPION
from cnn_search.evidence import MARK
from cnn_search.findings import Finding, Sweep, count, list_some
from cnn_search.ledger import Trial

PARENT = "mlflow.parentRunId"
MISSING = "missing"  # tag of a version whose files or run are gone
PICTURES = {  # what a finished trial has in MLflow, and the file of its folder it is made from
    "configuration.json": "configuration.json",
    "summary.txt": "summary.txt",
    "curves.png": "",  # the ledger
    "validation_predictions.png": "validation_predictions.npz",
    "diagram.svg": "diagram.dot",
}


def compare(sweep: Sweep, store: Store) -> Iterator[Finding]:
    """Yield where MLflow differs from a ledger; deliveries first, since they settle most."""
    deliver = partial(sweep.deliver, store)
    anew = partial(deliver, anew=True)
    yield from _compare_parents(sweep, store)
    if why := _undelivered(sweep, store):
        yield Finding(sweep.name, why, "deliver the ledger", deliver)
    if not _undelivered(sweep, store):
        if lost := list(_lost_artifacts(sweep, store)):
            what = f"MLflow lacks {list_some(lost)}"
            yield Finding(sweep.name, what, "deliver the ledger anew", anew)
        if lost := list(_lost_versions(sweep, store)):
            what = f"the registry lacks {list_some(lost)}"
            remedy = "deliver the ledger anew, which registers what is still on the disk"
            yield Finding(sweep.name, what, remedy, anew)
    yield from _compare_running(sweep, store)
    yield from _compare_versions(store, sweep.record.definition["name"], sweep)


def _undelivered(sweep: Sweep, store: Store) -> str:
    """Return why MLflow has not all of the ledger; empty if it has."""
    state = sweep.delivered()
    if not state:
        return "nothing tells that its ledger was delivered into MLflow"
    if state["uri"] != store.address:
        return f"its ledger was delivered into {state['uri']}, and not into {store.address}"
    if not _is_there(store, state["runs"].get("parent")):
        return "its run is gone: MLflow's store is a new one, or was wiped"
    if state["offset"] < sweep.size:
        return f"{sweep.size - state['offset']:,} bytes of its ledger are not delivered into MLflow"
    return ""


def _is_there(store: Store, run: str | None) -> bool:
    """Return whether there is such a run; one that a user deleted in the UI still is."""
    try:
        return run is not None and store.client().get_run(run) is not None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


# Runs


def _without_parent(store: Store, runs: Iterable[Run]) -> list[Run]:
    children = [run for run in runs if run.data.tags.get("cnn_search.kind") != "sweep"]
    parents = {run.data.tags.get(PARENT) for run in children}
    gone = {parent for parent in parents if not _is_there(store, parent)}
    return [run for run in children if run.data.tags.get(PARENT) in gone]


def _compare_parents(sweep: Sweep, store: Store) -> Iterator[Finding]:
    lost = _without_parent(store, sweep.runs(store))

    def adopt() -> str:
        told = sweep.deliver(store, anew=True)  # makes the parents, finds the rest by its tags
        made = sweep.delivered()["runs"]
        for run in lost:
            parent = made["final" if "cnn_search.final" in run.data.tags else "parent"]
            store.client().set_tag(run.info.run_id, PARENT, parent)
        return f"{told}, and put below it"

    if lost:
        what = f"{count(lost, 'run')} without the run that they are part of: {_names(lost)}"
        yield Finding(sweep.name, what, "deliver the ledger anew, and put them below it", adopt)


def _compare_running(sweep: Sweep, store: Store) -> Iterator[Finding]:
    """Yield the runs that are RUNNING though no driver is there."""

    def left() -> list[Run]:
        return [run for run in sweep.runs(store) if run.info.status == "RUNNING"]

    if ended := [run for run in left() if _has_end(sweep, run)]:
        what = f"{count(ended, 'run')} RUNNING in MLflow, ended by the ledger: {_names(ended)}"
        anew = partial(sweep.deliver, store, anew=True)
        yield Finding(sweep.name, what, "deliver the ledger anew", anew)
    if cut := [run for run in left() if not _has_end(sweep, run)]:
        what = f"{count(cut, 'run')} RUNNING in MLflow, which no driver runs: {_names(cut)}"
        remedy = "set KILLED at the ledger's last time"
        fix = partial(_kill, store, cut, int(sweep.record.last_time * 1000))
        yield Finding(sweep.name, what, remedy, fix)


def _kill(store: Store, runs: list[Run], milliseconds: int | None) -> str:
    for run in runs:
        store.client().set_terminated(run.info.run_id, "KILLED", milliseconds)
    return "set KILLED"


def _has_end(sweep: Sweep, run: Run) -> bool:
    """Return whether the ledger tells how a run ended."""
    record, trial = sweep.record, sweep.trial(run)
    if trial is not None:
        earlier = int(run.data.tags["cnn_search.attempt"]) < trial.attempt
        return earlier or trial.status != "running"
    if run.data.tags.get("cnn_search.kind") == "final" or record.job == "final":
        return bool(record.scoring_end)
    return bool(record.end)


def _names(runs: list[Run]) -> str:
    return list_some([run.info.run_name for run in runs])


# Artifacts


def _lost_artifacts(sweep: Sweep, store: Store) -> Iterator[str]:
    diagrams = shutil.which("dot") is not None
    for run in sweep.runs(store):
        there = {file.path for file in store.client().list_artifacts(run.info.run_id)}
        trial = sweep.trial(run)
        if run.data.tags.get("cnn_search.kind") == "sweep":
            if sweep.ended and "ledger.jsonl" not in there:
                yield "ledger.jsonl"
        elif trial and trial.status == "finished" and run.data.tags.get("final") == "true":
            for picture, source in PICTURES.items():
                here = (trial.folder(sweep.folder) / source).exists()
                here = here and (diagrams or not picture.startswith("diagram"))
                if picture not in there and (here or "missing.txt" not in there):
                    yield f"{picture} of {_name(trial)}" + ("" if here else " (gone here too)")


def _name(trial: Trial) -> str:
    return f"{'retraining' if trial.source == 'final' else 'trial'} {trial.number}"


# The registry


def _lost_versions(sweep: Sweep, store: Store) -> Iterator[str]:
    """Yield the models that were to be registered, and are not."""
    record = sweep.record
    wanted = [] if record.champion is None else [record.trials[record.champion]]
    wanted += [record.finals[record.scored["final"]]] if record.scored else []
    runs = sweep.runs(store)
    passed_over = [sweep.trial(run) for run in runs if "not_registered" in run.data.tags]
    versions = _versions(store, record.definition["name"])
    for trial in wanted:
        marks = evidence.marks(record, trial).items()
        if trial not in passed_over and not any(marks <= v.tags.items() for v in versions):
            yield f"the model of {_name(trial)}"


def _versions(store: Store, name: str) -> list[ModelVersion]:
    found = store.client().search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version))


def _compare_versions(
    store: Store, name: str, sweep: Sweep | None, known: Collection[str] = ()
) -> Iterator[Finding]:
    """Yield the versions of a sweep, or of all but the known ones, that lost their files or run."""
    for version in _versions(store, name):
        of = version.tags.get(MARK)
        if of is None or (of in known if sweep is None else of != sweep.name):
            continue
        lost = _losses(store, version)
        where = f"{name} version {version.version}"
        if lost == ["its files"] and sweep and (trial := _weights(sweep, version)):
            restore = partial(models.restore, store, sweep.record, sweep.folder, trial, version)
            remedy = f"upload them again from {trial.folder(sweep.folder)}"
            yield Finding(where, "its files are gone", remedy, restore)
            continue
        holders = store.client().get_registered_model(name).aliases
        held = [alias for alias, number in holders.items() if str(number) == str(version.version)]
        if lost and version.tags.get(MISSING) != "true":
            what = f"it has lost {' and '.join(lost)} for good"
            yield Finding(where, what, f"tag it {MISSING} = true", partial(_tag, store, version))
        if lost and CHAMPION in held:
            registry = "python -m cnn_search.registry"
            remedy = (
                f"{registry} rollback {name}, or: {registry} promote {name} --version N --force"
            )
            yield Finding(where, f"it is {CHAMPION}, and has lost {' and '.join(lost)}", remedy)


def _losses(store: Store, version: ModelVersion) -> list[str]:
    """Return what a version has lost."""
    files = mlflow.artifacts.list_artifacts(f"{version.source}/data", tracking_uri=store.uri)
    whole = any(file.path.endswith("model.keras") for file in files)
    lost = [] if whole else ["its files"]
    return lost if _is_there(store, version.run_id) else [*lost, "its run"]


def _tag(store: Store, version: ModelVersion) -> str:
    store.client().set_model_version_tag(version.name, version.version, MISSING, "true")
    return "tagged"


def _weights(sweep: Sweep, version: ModelVersion) -> Trial | None:
    """Return the trial or retraining that a version is of, if its weights are still on the disk."""
    record, tags = sweep.record, version.tags
    trial = record.trials.get(int(tags.get("cnn_search.trial", -1)))
    if record.scored and "cnn_search.final" in tags:
        trial = record.finals.get(int(tags["cnn_search.final"]))
    if trial is None or not evidence.marks(record, trial).items() <= tags.items():
        return None  # or scored with other seeds since, which its files tell
    return trial if (trial.folder(sweep.folder) / "model.keras").exists() else None


# Sweeps that have no ledger here


def find_strangers(
    store: Store, name: str | None, folders: Callable[[], Collection[str]]
) -> Iterator[Finding]:
    """Yield what is wrong in MLflow with the sweeps called `name`, or all, that have no folder.

    Elsewhere their drivers may be alive, so that only runs of a store of our own are ended.
    """
    client, query = store.client(), f"tags.`{MARK}` LIKE '%'"
    experiments = [found.experiment_id for found in all_pages(client.search_experiments)]
    found: dict[str, list[Run]] = {}
    for run in all_pages(client.search_runs, experiments, query):
        found.setdefault(run.data.tags[MARK], []).append(run)
    known = folders()  # now: one that began meanwhile has its folder before its first run
    strangers = {s: runs for s, runs in found.items() if s not in known and _is_called(s, name)}
    for sweep, runs in sorted(strangers.items()):
        away = "and its ledger is not here"
        if lost := _without_parent(store, runs):
            what = f"{count(lost, 'run')} without the run that they are part of, {away}"
            remedy = "Put the sweep's folder back, or delete them in MLflow."
            yield Finding(sweep, f"{what}: {_names(lost)}", remedy)
        if left := [run for run in runs if run.info.status == "RUNNING"]:
            what = f"{count(left, 'run')} RUNNING in MLflow, {away}: {_names(left)}"
            if store.artifacts is None:  # a server, or another database, of several machines
                yield Finding(sweep, f"{what}; its driver may be on another machine", note=True)
            else:
                yield Finding(sweep, what, "set KILLED, now", partial(_kill, store, left, None))
    for model in all_pages(client.search_registered_models):
        if name in (None, model.name):
            yield from _compare_versions(store, model.name, None, known)


def _is_called(sweep: str, name: str | None) -> bool:
    return name in (None, sweep.rsplit("-", 2)[0])
