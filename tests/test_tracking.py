"""Tests of `cnn_search.tracking` and `store`: a real sweep's ledger, delivered into real MLflow."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.entities import Run, ViewType
from PIL import Image

from cnn_search import datasets, definition, figures, ledger, models, search, store, tracking
from cnn_search.errors import TrackingError
from cnn_search.ledger import Event, Ledger, Record, read_events, read_record
from cnn_search.store import Store

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
EPOCH_METRICS = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds"}
_made: dict[str, Any] = {}


def tiny_sweep(factory: pytest.TempPathFactory) -> Path:
    """Runs one real sweep of three trials a session; returns its mlruns folder."""
    if "sweep" not in _made:
        mlruns = factory.mktemp("sweep") / "mlruns"
        with pytest.MonkeyPatch.context() as patch:
            forget_the_user(patch)
            outcome = search.run(
                definition.read(
                    "digits",
                    {
                        "trials": 3,
                        "training.epochs": 2,
                        "keep_models": 2,
                        "seed": 5,
                        "recipes": False,
                    },
                ),
                datasets.load("digits", train_limit=300),
                mlruns,
            )
        assert outcome.undelivered == ""
        _made["sweep"] = mlruns
    return Path(_made["sweep"])


def forget_the_user(patch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        patch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_user(monkeypatch)


@pytest.fixture(scope="session")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sweep(tmp_path_factory)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return store.open_store(tmp_path / "mlruns", "digits", create=True)


def folder_of(mlruns: Path) -> Path:
    folder = search.find_sweep(mlruns, "digits")
    assert folder is not None
    return folder


def events_of(folder: Path) -> list[Event]:
    return [event for event, _ in read_events(folder / "ledger.jsonl")]


def write_ledger(folder: Path, events: list[Event]) -> None:
    """Writes events as they are, their times too, numbered anew."""
    lines = [ledger._line({**event, "n": n}) for n, event in enumerate(events, 1)]
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))


def copy_of(mlruns: Path, tmp_path: Path, events: list[Event] | None = None) -> Path:
    """Copies a sweep's folder, not yet delivered; its ledger may be another."""
    source = folder_of(mlruns)
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    (folder / "tracking.json").unlink()
    if events is not None:
        write_ledger(folder, events)
        for trial in ("0000", "0001", "0002"):  # retold, another one may be the best
            if not (model := folder / "trials" / trial / "model.keras").exists():
                shutil.copy(next(folder.glob("trials/*/model.keras")), model)
    return folder


def killed_and_resumed(events: list[Event]) -> list[Event]:
    """Retells a sweep: killed in trial 0, trial 1 fails, interrupted in trial 2, resumed twice."""
    of = {(e["kind"], e.get("trial"), e.get("epoch")): e for e in events}
    header, session = events[:2]
    end = {"kind": "end"}
    bare: list[Event] = [
        header,
        session,
        *(of["ask", 0, None], of["start", 0, None], of["epoch", 0, 1]),
        session,  # the process was killed
        {"kind": "killed", "trial": 0, "attempt": 1},
        *({**of[key], "attempt": 2} for key in (("start", 0, None), ("epoch", 0, 2))),
        {**of["done", 0, None], "attempt": 2},
        *(of["ask", 1, None], of["start", 1, None]),
        {
            **{"kind": "failed", "trial": 1, "attempt": 1, "reason": "diverged"},
            **{"message": "loss became nan in epoch 1 " * 400, "traceback": "Traceback ..."},
        },
        *(of["ask", 2, None], of["start", 2, None], of["epoch", 2, 1]),
        {"kind": "stop", "trial": 2, "attempt": 1, "reason": "interrupted"},
        {"kind": "stopped", "trial": 2, "attempt": 1},
        {**end, "reason": "interrupted"},
        session,
        *({**of[key], "attempt": 2} for key in (("start", 2, None), ("epoch", 2, 2))),
        {**of["done", 2, None], "attempt": 2, "score": 0.99},
        {"kind": "champion", "trial": 2},
        {**end, "reason": "finished"},
    ]
    return [{**event, "time": header["time"] + n} for n, event in enumerate(bare)]


def deliver(where: Store, folder: Path) -> None:
    assert tracking.Follower(where, folder).deliver() == ""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_as_before(monkeypatch)


def draw_as_before(patch: pytest.MonkeyPatch) -> None:
    """Takes the pictures that the real sweep drew, where others are not the question."""
    kinds = (".png", ".svg", ".txt", ".json")

    def found(folder: Path, *rest: Any) -> tuple[list[Path], list[str]]:
        return sorted(p for p in folder.iterdir() if p.suffix in kinds), []

    patch.setattr(figures, "draw_trial", found)
    patch.setattr(figures, "draw_samples", lambda *rest: Figure(figsize=(1, 1)))


def runs_of(where: Store, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    """Returns the runs by "parent" or "trial-attempt", each once."""
    client = where.client()
    experiment = client.get_experiment_by_name(where.experiment)
    runs = client.search_runs([experiment.experiment_id], "", view) if experiment else []
    found = {}
    for run in runs:
        tags = run.data.tags
        key = f"{tags['trial']}-{tags['attempt']}" if "trial" in tags else "parent"
        assert key not in found
        found[key] = run
    return found


def points_of(where: Store, run: Run) -> dict[str, list[tuple[int, int, float]]]:
    client = where.client()
    return {
        name: [
            (p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def seconds(event: Event) -> dict[str, float]:
    return {"epoch_seconds": event["seconds"]}


def artifacts_of(where: Store, run: Run) -> set[str]:
    return {file.path for file in where.client().list_artifacts(run.info.run_id)}


def everything(where: Store) -> dict[str, Any]:
    """Returns all that MLflow has of a sweep, but identities."""
    own = {"mlflow.parentRunId", "mlflow.user"}
    told: dict[str, Any] = {
        key: {
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "name": run.info.run_name,
            "params": run.data.params,
            "tags": {k: v for k, v in run.data.tags.items() if k not in own},
            "points": points_of(where, run),
            "artifacts": artifacts_of(where, run),
            "data": [i.dataset.digest for i in run.inputs.dataset_inputs],
            "models": len(run.outputs.model_outputs) if run.outputs else 0,
        }
        for key, run in runs_of(where).items()
    }
    client = where.client()
    told["versions"] = sorted(
        (int(version.version), version.tags["cnn_search.trial"])
        for version in client.search_model_versions("name = 'digits'")
    )
    if told["versions"]:
        told["champion"] = client.get_model_version_by_alias("digits", "champion").version
        told["champion"] = int(told["champion"])
    return told


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


# What a finished sweep has in MLflow


def test_the_parent_run_tells_the_whole_sweep(mlruns: Path) -> None:
    where, folder = store.open_store(mlruns, "digits"), folder_of(mlruns)
    header, session, *_ = events_of(folder)
    run = runs_of(where)["parent"]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.name
    assert run.info.start_time == int(header["time"] * 1000)
    assert run.info.end_time == int(events_of(folder)[-1]["time"] * 1000)
    params, tags = run.data.params, run.data.tags
    assert params["data"] == "digits"
    assert params["training.epochs"] == "2"
    assert params["oracle.kind"] == "tpe"
    assert "minutes" not in params
    assert tags["data_digest"] == datasets.load("digits", train_limit=300).digest
    assert tags["data_source"] == header["data"]["source"]
    for name, version in session["versions"].items():
        assert tags[f"version.{name}"] == version
    assert tags["machine.cores"] == str(os.cpu_count())
    assert {k: v for k, v in tags.items() if k.startswith("git.")} == {
        f"git.{k}": str(v) for k, v in session["git"].items()
    }
    assert tags["ended"] == "finished"
    record = read_record(folder / "ledger.jsonl")
    best = record.ranking()[0]
    assert tags["best_trial"] == str(best.number)
    assert run.data.metrics["best_val_accuracy"] == best.result["score"]
    note = tags["mlflow.note.content"]
    assert f"| {best.number} | {best.result['score']:.4f} |" in note
    assert "| 0 | " in note
    assert "vgg_bn" in note
    assert artifacts_of(where, run) == {"samples.png", "ledger.jsonl"}


def test_the_parent_run_has_its_images_as_an_mlflow_dataset(mlruns: Path) -> None:
    where = store.open_store(mlruns, "digits")
    header = events_of(folder_of(mlruns))[0]
    (used,) = runs_of(where)["parent"].inputs.dataset_inputs
    assert used.dataset.name == "digits"
    assert header["data"]["digest"].startswith(used.dataset.digest)
    assert json.loads(used.dataset.profile)["train_images"] == header["data"]["train_images"]
    schema = json.loads(used.dataset.schema)["mlflow_tensorspec"]
    assert json.loads(schema["features"])[0]["tensor-spec"] == {
        "dtype": "uint8",
        "shape": [-1, 8, 8, 1],
    }
    assert json.loads(used.dataset.source) == {"uri": header["data"]["source"]}


def test_a_trial_has_its_hyperparameters_under_their_plain_names(mlruns: Path) -> None:
    runs = runs_of(store.open_store(mlruns, "digits"))
    record = read_record(folder_of(mlruns) / "ledger.jsonl")
    assert set(runs) == {"parent", "0-1", "1-1", "2-1"}
    for trial in record.trials.values():
        params = runs[f"{trial.number}-1"].data.params
        expected = {**trial.values, "epochs": trial.epochs, "seed": trial.seed}
        assert params == {name: str(value) for name, value in expected.items()}
        tags = runs[f"{trial.number}-1"].data.tags
        assert tags["final"] == "true"
        assert tags["threads"] == "1"
        assert tags["backend"] == "tensorflow"
        assert tags["mlflow.parentRunId"] == runs["parent"].info.run_id
    assert runs["0-1"].data.tags["kind"] == "baseline vgg_bn"
    assert runs["0-1"].info.run_name == "trial 000 vgg_bn"


@pytest.mark.usefixtures("drawn")
def test_hyperband_s_own_entries_are_no_hyperparameters(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    events = events_of(folder_of(mlruns))
    for event in events:
        if event["kind"] == "ask":
            event["oracle"] = {"tuner/epochs": 2, "tuner/bracket": 1}
    deliver(empty, copy_of(mlruns, tmp_path, events))
    assert not [p for run in runs_of(empty).values() for p in run.data.params if "tuner" in p]


def test_every_epoch_has_its_metrics_at_the_ledger_s_time(mlruns: Path) -> None:
    where, folder = store.open_store(mlruns, "digits"), folder_of(mlruns)
    runs = runs_of(where)
    for trial in (0, 1, 2):
        points = points_of(where, runs[f"{trial}-1"])
        epochs = [e for e in events_of(folder) if e["kind"] == "epoch" and e["trial"] == trial]
        assert {*epochs[0]["metrics"], "epoch_seconds"} == EPOCH_METRICS
        for name in EPOCH_METRICS:
            assert points[name] == [
                (e["epoch"], int(e["time"] * 1000), {**e["metrics"], **seconds(e)}[name])
                for e in epochs
            ]
        (done,) = [e for e in events_of(folder) if e["kind"] == "done" and e["trial"] == trial]
        best = [value for _, _, value in points["best_val_accuracy"]]
        assert best[0] == epochs[0]["metrics"]["val_accuracy"]
        assert runs[f"{trial}-1"].data.metrics["best_val_accuracy"] == done["score"] == max(best)
        for name in ("best_epoch", "parameters", "trainable_parameters", "flops"):
            assert [value for _, _, value in points[name]] == [done[name]]
        assert runs[f"{trial}-1"].info.end_time == int(done["time"] * 1000)


def test_a_trial_has_its_pictures(mlruns: Path, tmp_path: Path) -> None:
    where = store.open_store(mlruns, "digits")
    for key, run in runs_of(where).items():
        if key == "parent":
            continue
        found = artifacts_of(where, run)
        assert found >= {
            *("curves.png", "validation_predictions.png", "summary.txt", "configuration.json"),
            *({"diagram.png", "diagram.svg"} if shutil.which("dot") else {"missing.txt"}),
        }
        for name in sorted(found):
            file = where.client().download_artifacts(run.info.run_id, name, str(tmp_path))
            if name.endswith(".png"):
                with Image.open(file) as image:
                    image.load()
                    assert image.format == "PNG"
                    assert min(image.size) > 100
            elif name == "configuration.json":
                told = json.loads(Path(file).read_text())
                assert told["values"]["depth"] == int(run.data.params["depth"])
            elif name == "summary.txt":
                assert "Total params" in Path(file).read_text()
            elif name == "diagram.svg":
                assert "<svg" in Path(file).read_text()


def test_only_the_best_few_have_their_weights(mlruns: Path) -> None:
    where = store.open_store(mlruns, "digits")
    record = read_record(folder_of(mlruns) / "ledger.jsonl")
    champion, second, third = (f"{trial.number}-1" for trial in record.ranking())
    runs = runs_of(where)
    with_weights = {key for key, run in runs.items() if "model.keras" in artifacts_of(where, run)}
    assert with_weights == {second}
    with_models = {key for key, run in runs.items() if run.outputs and run.outputs.model_outputs}
    assert with_models == {champion}
    assert third not in with_weights | with_models


def test_without_graphviz_a_line_says_so(
    mlruns: Path, empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(mlruns, tmp_path)
    for file in folder.glob("trials/*/diagram.[ps][nv]g"):
        file.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    deliver(empty, folder)
    run = runs_of(empty)["0-1"]
    found = artifacts_of(empty, run)
    assert "curves.png" in found
    assert not found & {"diagram.png", "diagram.svg"}
    said = empty.client().download_artifacts(run.info.run_id, "missing.txt", str(tmp_path))
    assert "Graphviz (the command dot) is not installed" in Path(said).read_text()


def test_a_lost_trial_folder_costs_its_pictures_and_nothing_else(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    folder = copy_of(mlruns, tmp_path)
    shutil.rmtree(folder / "trials")
    deliver(empty, folder)
    told = everything(empty)
    assert {told[key]["status"] for key in ("parent", "0-1", "1-1", "2-1")} == {"FINISHED"}
    assert told["0-1"]["artifacts"] == {"missing.txt"}
    assert told["versions"] == []
    champion = read_record(folder / "ledger.jsonl").champion
    assert "no longer on the disk" in told[f"{champion}-1"]["tags"]["not_registered"]


# While the sweep runs


@pytest.mark.usefixtures("drawn")
def test_epochs_are_in_mlflow_while_the_trial_trains(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    folder = copy_of(mlruns, tmp_path)
    events = events_of(folder)
    (folder / "ledger.jsonl").unlink()
    written = Ledger(folder / "ledger.jsonl")
    written.open()
    written.append(**{k: v for k, v in events[0].items() if k not in ("n", "time")})
    follower = tracking.Follower(empty, folder)
    follower.start()
    try:
        for event in events[1:]:
            written.append(**{k: v for k, v in event.items() if k not in ("n", "time")})
            if event["kind"] == "epoch":
                key, epoch = f"{event['trial']}-1", event["epoch"]

                def arrived(key: str = key, epoch: int = epoch) -> bool:
                    run = runs_of(empty).get(key)
                    return run is not None and len(points_of(empty, run).get("loss", [])) == epoch

                wait_for(arrived)
                assert runs_of(empty)[key].info.status == "RUNNING"
                assert runs_of(empty)["parent"].info.status == "RUNNING"
    finally:
        written.close()
        problem = follower.close(lambda line: None)
    assert problem == ""
    assert {run.info.status for run in runs_of(empty).values()} == {"FINISHED"}


def test_delivery_draws_nothing_from_the_global_generators(
    mlruns: Path, empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the trial that begins beside it draws its weights from them; so does MLflow's second retry
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    folder = copy_of(mlruns, tmp_path)
    dead = Store(f"http://127.0.0.1:{free_port()}", "digits", None)
    before, numbers = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr, unused-ignore]
    assert tracking.Follower(dead, folder).deliver() != ""
    deliver(empty, folder)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[index, union-attr, unused-ignore]


# Again, cut short, wiped, elsewhere


@pytest.fixture(scope="module")
def cut_events(mlruns: Path) -> list[Event]:
    return killed_and_resumed(events_of(folder_of(mlruns)))


@pytest.fixture(scope="module")
def expected(
    mlruns: Path, cut_events: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Gives what one undisturbed delivery of the killed and resumed sweep stores."""
    folder = tmp_path_factory.mktemp("undisturbed")
    where = store.open_store(folder / "mlruns", "digits", create=True)
    with pytest.MonkeyPatch.context() as patch:
        draw_as_before(patch)
        deliver(where, copy_of(mlruns, folder, cut_events))
    return everything(where)


def test_a_killed_and_resumed_sweep_leaves_no_run_running(expected: dict[str, Any]) -> None:
    status = {key: told["status"] for key, told in expected.items() if "-" in key}
    assert status == {
        **{"0-1": "KILLED", "0-2": "FINISHED", "1-1": "FAILED"},
        **{"2-1": "KILLED", "2-2": "FINISHED"},
    }
    assert expected["parent"]["status"] == "FINISHED"
    final = {key for key in status if expected[key]["tags"].get("final") == "true"}
    assert final == {"0-2", "1-1", "2-2"}
    failed = expected["1-1"]
    assert failed["tags"]["failure"] == "diverged"
    assert failed["tags"]["failure_message"].startswith("loss became nan in epoch 1")
    assert failed["artifacts"] == {"traceback.txt"}
    assert expected["versions"] == [(1, "2")]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", ["killed", "stopped", "end"])
def test_a_cut_short_sweep_is_killed_in_mlflow_too(
    mlruns: Path, cut_events: list[Event], empty: Store, tmp_path: Path, kind: str
) -> None:
    last = [event["kind"] for event in cut_events].index(kind)
    deliver(empty, copy_of(mlruns, tmp_path, cut_events[: last + 1]))
    runs = runs_of(empty)
    key = {"killed": "0-1", "stopped": "2-1", "end": "parent"}[kind]
    assert runs[key].info.status == "KILLED"
    assert runs[key].info.end_time == int(cut_events[last]["time"] * 1000)
    assert "model.keras" not in artifacts_of(empty, runs["parent"])


@pytest.mark.usefixtures("drawn")
def test_delivering_three_times_stores_everything_once(
    mlruns: Path, cut_events: list[Event], expected: dict[str, Any], empty: Store, tmp_path: Path
) -> None:
    folder = copy_of(mlruns, tmp_path, cut_events)
    for spoil in (lambda file: file.unlink(), lambda file: file.write_text('{"uri": "')):
        deliver(empty, folder)
        spoil(folder / "tracking.json")
    deliver(empty, folder)
    assert everything(empty) == expected


class Killed(BaseException):
    """What no handler catches, as a kill."""


@pytest.mark.usefixtures("drawn")
def test_a_kill_after_any_event_stores_everything_once(
    mlruns: Path,
    cut_events: list[Event],
    expected: dict[str, Any],
    empty: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delivers one event, does the next one without recording it, dies; for every event."""
    folder = copy_of(mlruns, tmp_path, cut_events)
    replace, deaths, allowed = os.replace, 0, 0

    def replace_or_die(source: Path, target: Path) -> None:
        nonlocal allowed
        if Path(target).name == "tracking.json":
            if allowed == 0:
                raise Killed
            allowed -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.os, "replace", replace_or_die)
        for first in [0] + [1] * len(cut_events):
            allowed = first
            try:
                deliver(empty, folder)
            except Killed:
                deaths += 1
    assert deaths == len(cut_events)
    deliver(empty, folder)
    assert everything(empty) == expected


@pytest.mark.usefixtures("drawn")
def test_a_kill_at_any_call_of_mlflow_stores_everything_once(
    mlruns: Path,
    cut_events: list[Event],
    expected: dict[str, Any],
    empty: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_of(mlruns, tmp_path, cut_events)

    class Dying:
        """A client that dies before its n-th writing call."""

        def __init__(self, client: mlflow.MlflowClient, calls: int) -> None:
            self.client, self.calls = client, calls

        def __getattr__(self, name: str) -> Any:
            if name.startswith(("get_", "search_")):
                return getattr(self.client, name)
            if self.calls == 0:
                raise Killed
            self.calls -= 1
            return getattr(self.client, name)

    calls, offset, most = 0, -1, 0
    for _ in range(1000):
        delivery = tracking._Delivery(empty, folder, set())
        delivery.client = Dying(delivery.client, calls)  # type: ignore[assignment]
        try:
            delivery.run()
            break
        except Killed:
            most = max(most, calls)
            # from the stored offset again, dying one call later, until that event is through
            calls, offset = (calls + 1 if delivery.offset == offset else 0), delivery.offset
    told = everything(empty)
    assert most >= 8  # the registration alone
    for key in expected:
        if "-" in key:
            expected_here = {**expected[key], "artifacts": ..., "models": ...}
            assert {**told[key], "artifacts": ..., "models": ...} == expected_here
    assert told["parent"] == expected["parent"]
    assert told["versions"] == expected["versions"]
    assert told["champion"] == expected["champion"]


@pytest.mark.usefixtures("drawn")
def test_a_wiped_store_gets_everything_again(mlruns: Path, tmp_path: Path) -> None:
    folder = copy_of(mlruns, tmp_path)
    first = store.open_store(tmp_path / "first", "digits", create=True)
    deliver(first, folder)
    told = everything(first)
    assert told["versions"]
    # wiped: the same address, where nothing is any more; MLflow's engines keep a deleted file open
    second = store.open_store(tmp_path / "second", "digits", create=True)
    state = json.loads((folder / "tracking.json").read_text())
    state["uri"] = second.address
    (folder / "tracking.json").write_text(json.dumps(state))
    deliver(second, folder)
    assert everything(second) == told


@pytest.mark.usefixtures("drawn")
def test_a_new_process_fills_a_deleted_database(mlruns: Path, tmp_path: Path) -> None:
    shutil.copytree(mlruns, tmp_path / "mlruns")
    for file in (tmp_path / "mlruns").glob("mlflow.db*"):
        file.unlink()
    where = store.open_store(tmp_path / "mlruns", "digits", create=True)
    folder = folder_of(tmp_path / "mlruns")
    state = json.loads((folder / "tracking.json").read_text())
    (folder / "tracking.json").write_text(json.dumps({**state, "uri": where.uri}))
    deliver(where, folder)
    assert {run.info.status for run in runs_of(where).values()} == {"FINISHED"}
    assert where.client().get_model_version_by_alias("digits", "champion").version


@pytest.mark.usefixtures("drawn")
def test_another_store_gets_everything_too(
    mlruns: Path,
    empty: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = copy_of(mlruns, tmp_path)
    other = store.open_store(tmp_path / "other", "digits", create=True)
    deliver(empty, folder)
    deliver(other, folder)
    assert everything(empty) == everything(other)
    assert not list(Path().iterdir())  # MLflow's global store is ./mlflow.db


# A user at work in the UI


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("which", ["parent", "1-1", "champion"])
def test_a_run_deleted_meanwhile_stays_deleted_and_the_rest_arrives(
    mlruns: Path, empty: Store, tmp_path: Path, which: str
) -> None:
    folder = copy_of(mlruns, tmp_path)
    events = events_of(folder)
    champion = f"{read_record(folder / 'ledger.jsonl').champion}-1"
    key = champion if which == "champion" else which
    kinds = [(e["kind"], e.get("trial")) for e in events]
    seen = kinds.index(("epoch", 0 if which == "parent" else int(key[0])))
    write_ledger(folder, events[: seen + 1])
    deliver(empty, folder)
    empty.client().delete_run(runs_of(empty)[key].info.run_id)
    write_ledger(folder, events)
    said: list[str] = []
    follower = tracking.Follower(empty, folder)
    follower.start()
    assert follower.close(said.append) == ""
    assert f"note: run {key} was deleted in MLflow, and is left so" in said
    runs = runs_of(empty)
    assert set(runs) == {"parent", "0-1", "1-1", "2-1"} - {key}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    if which != "parent":
        assert runs["parent"].data.tags["best_trial"] == champion[0]
    assert empty.client().get_model_version_by_alias("digits", "champion")
    (folder / "tracking.json").unlink()
    deliver(empty, folder)  # it is not made again
    assert set(runs_of(empty)) == set(runs)


@pytest.mark.usefixtures("drawn")
def test_a_deleted_experiment_is_said_before_anything_is_trained(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    folder = copy_of(mlruns, tmp_path)
    client = empty.client()
    experiment = client.create_experiment("digits", empty.artifacts)
    client.delete_experiment(experiment)
    assert "one that was deleted" in tracking.Follower(empty, folder).deliver()
    with pytest.raises(TrackingError, match="experiment 'digits'.*was deleted.* restore --exp"):
        store.open_store(tmp_path / "mlruns", "digits")
    client.restore_experiment(experiment)
    deliver(empty, folder)
    assert set(runs_of(empty)) == {"parent", "0-1", "1-1", "2-1"}


# Which store


def test_two_stores_in_one_process_stay_apart(empty: Store, tmp_path: Path) -> None:
    # mlflow.set_tracking_uri wrote the first into MLFLOW_TRACKING_URI, which won over the second
    assert store.open_store(tmp_path / "mlruns", "digits").uri == empty.uri
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with pytest.raises(TrackingError, match="there is none"):
        store.open_store(tmp_path / "elsewhere", "digits")


def test_settings_of_the_user_win(
    mlruns: Path, empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    where = store.open_store(tmp_path / "unused", "digits", create=True)
    assert where == Store(empty.uri, "mine", None)
    assert not (tmp_path / "unused").exists()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert store.open_store(tmp_path, "digits").experiment == "digits"


@pytest.mark.usefixtures("drawn")
def test_runs_go_into_the_experiment_of_the_user(
    mlruns: Path, empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    where = store.open_store(tmp_path / "mlruns", "digits")
    deliver(where, copy_of(mlruns, tmp_path, events_of(folder_of(mlruns))[:5]))
    assert {e.name for e in where.client().search_experiments()} == {"Default", "mine"}
    assert set(runs_of(where)) == {"parent", "0-1"}


def test_a_new_database_is_made_in_wal_mode_and_has_every_artifact_in_mlruns(mlruns: Path) -> None:
    with contextlib.closing(sqlite3.connect(mlruns / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    where = store.open_store(mlruns, "digits")
    for run in runs_of(where).values():
        assert run.info.artifact_uri.startswith((mlruns / "artifacts").as_uri())
    # the model's once went to ./mlruns/0, wherever the process stood
    version = where.client().get_model_version_by_alias("digits", "champion")
    assert version.source.startswith((mlruns / "artifacts").as_uri())


def test_without_a_database_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="expected MLflow's database, mlflow.db; there is none"):
        store.open_store(tmp_path / "none", "digits")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="expected a folder that can be written.*--mlruns"):
        store.open_store(tmp_path / "file" / "mlruns", "digits", create=True)
    with pytest.raises(TrackingError, match="expected a path without % and"):
        store.open_store(tmp_path / "100%", "digits", create=True)


# Servers that are down, and secrets


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_server_that_does_not_answer_is_said_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:p@ss-secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError, match=f"an answer from http://127.0.0.1:{port}") as caught:
        store.open_store(tmp_path, "digits", create=True)
    assert "secret" not in str(caught.value)
    assert "user" not in str(caught.value)


def test_a_server_that_never_comes_back_is_told_at_the_end(
    mlruns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)
    folder = copy_of(mlruns, tmp_path)
    dead = Store(f"http://user:secret@127.0.0.1:{free_port()}", "digits", None)
    assert "secret" not in repr(dead)
    follower = tracking.Follower(dead, folder)
    follower.start()
    reason = follower.close(lambda line: None)
    assert "127.0.0.1" in reason
    assert "secret" not in reason
    assert not (folder / "tracking.json").exists()


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """Runs a real `mlflow server` on the loopback, on an empty database."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **quiet, "PATH": path},
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.usefixtures("drawn")
@pytest.mark.slow
def test_a_server_that_comes_up_late_gets_everything_once_and_no_secret_is_written(
    mlruns: Path,
    cut_events: list[Event],
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = copy_of(mlruns, tmp_path, cut_events)
    store.open_store(tmp_path / "server", "digits", create=True)
    port = free_port()
    where = Store(f"http://alice:k9-Zx4@127.0.0.1:{port}", "digits", None)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 120)
    follower = tracking.Follower(where, folder)
    follower.start()
    wait_for(lambda: follower._problem)
    with server(tmp_path / "server", port):
        assert follower.close(lambda line: None) == ""
        told = everything(where)
        _, pulled = models.pull_model(where, "digits", tmp_path / "pulled")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", where.uri)
        assert store.open_store(tmp_path, "digits").address == f"http://127.0.0.1:{port}"
    assert told == expected
    assert capfd.readouterr() == ("", "")  # MLflow prints each run's address on stdout
    written = [file for file in folder.rglob("*") if file.is_file()]
    written += [*(tmp_path / "server").glob("mlflow.db*"), *pulled]
    assert folder / "tracking.json" in written
    assert not [file for file in written if b"k9-Zx4" in file.read_bytes()]


@pytest.mark.usefixtures("drawn")
def test_the_ledger_alone_is_read_not_written(mlruns: Path, empty: Store, tmp_path: Path) -> None:
    folder = copy_of(mlruns, tmp_path, events_of(folder_of(mlruns))[:5])
    before = (folder / "ledger.jsonl").read_bytes()
    deliver(empty, folder)
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert isinstance(read_record(folder / "ledger.jsonl"), Record)
