"""Tests of the command `doctor`: each thing that can be wrong, broken for real, found and fixed."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_tracking as tiny
from click.testing import CliRunner
from mlflow.entities import ViewType

from cnn_search import aliases, doctor, figures, models, store
from cnn_search.errors import LedgerError
from cnn_search.ledger import Event, Record, hold, pack_bits
from cnn_search.store import Store

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
ROOT = Path(__file__).parents[1]
START = 1.8e9  # when every sweep here began
NAME = "digits-20270115-080000"
DRAW = figures.draw_trial
VERSIONS = {"keras": "3.15.0", "tensorflow": "2.21.0"}


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)
    tiny.draw_as_before(monkeypatch)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished trial leaves in its folder: of a tiny network, its pictures drawn."""
    import keras

    folder = tmp_path_factory.mktemp("trial")
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), *layers]).save(folder / "model.keras")
    images = np.zeros((3, 4, 4, 1), np.uint8)
    shown = {"labels": np.zeros(3, np.int64), "probabilities": np.full((3, 2), 0.5, np.float32)}
    np.savez(folder / "validation_predictions.npz", images=images, **shown)
    (folder / "diagram.dot").write_text("digraph { image -> classes }")
    for name in ("configuration.json", "summary.txt", "curves.png", "diagram.svg"):
        (folder / name).write_text("{}")
    (folder / "validation_predictions.png").write_text("")
    return folder


class Told:
    """A sweep told event by event, with the files that its trials leave."""

    def __init__(self, mlruns: Path, files: Path, *, name: str = NAME, oracle: str = "random"):
        self.folder, self.files = mlruns / "sweeps" / name, files
        self.folder.mkdir(parents=True)
        self.events: list[Event] = []
        self.record = Record()
        names = {"class_names": ["a", "b"], "input_shape": [4, 4, 1]}
        counts = {"train_images": 80, "validation_images": 20}
        training = {"epochs": 1, "weights": "best"}
        definition = {"name": name.split("-")[0], "objective": "val_accuracy", "keep_models": 1}
        self.tell(
            "sweep",
            sweep=name,
            digest="d",
            direction="max",
            definition={**definition, "training": training, "oracle": {"kind": oracle}},
            data={"name": "digits", "source": "none", "digest": "of training", **names, **counts},
        )
        self.begin("search")

    def tell(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, "time": START + len(self.events), **fields})
        self.record.apply(self.events[-1])

    def begin(self, job: str, **versions: str) -> None:
        told = {"machine": {}, "git": {}, "command": "none", "versions": {**VERSIONS, **versions}}
        self.tell("session", job=job, **told)

    def ask(self, score: float | None) -> None:
        """Tells of one more trial; without a score it is still running."""
        number = len(self.record.trials)
        told = {"seed": 1, "epochs": 1, "parent": None, "source": "oracle", "oracle": {}}
        self.tell("ask", trial=number, values={"depth": number}, **told, baseline="")
        self.train({"trial": number}, score)

    def train(self, which: dict[str, int], score: float | None) -> None:
        attempt = {**which, "attempt": 1}
        self.tell("start", **attempt, threads=1, backend="none")
        folder = self.record.trial_of(attempt).folder(self.folder)
        folder.mkdir(parents=True)
        if score is None:
            (folder / "checkpoint.npz").write_bytes(b"needed")
            return
        shutil.copytree(self.files, folder, dirs_exist_ok=True)
        metrics = {"val_accuracy": score, "val_loss": 1 - score, "accuracy": 1.0, "loss": 0.1}
        self.tell("epoch", **attempt, epoch=1, metrics=metrics, seconds=1.0)
        sizes = dict.fromkeys(("trainable_parameters", "flops", "blocks_dropped", "model_bytes"), 1)
        done = {"score": score, "metrics": metrics, "epochs": 1, "best_epoch": 1, "parameters": 34}
        self.tell("done", **attempt, **done, **sizes)

    def search(self) -> "Told":
        """Tells of a search of two trials, whose second is the champion, to its end."""
        self.ask(0.7)
        self.ask(0.9)
        (self.folder / "trials" / "0000" / "model.keras").unlink()
        self.tell("champion", trial=1)
        self.tell("end", reason="finished")
        return self

    def score(self) -> "Told":
        """Tells of the scoring of trial 1, to its end."""
        self.begin("final")
        finalist = {"name": "trial 1", "trial": 1, "baseline": "", "values": {"depth": 1}}
        test = {"test_digest": "of test", "test_images": 8}
        self.tell("plan", finalists=[finalist], seeds=2, epochs=1, **test)
        for number in (0, 1):
            told = {"finalist": "trial 1", "values": {"depth": 1}, "seed": number, "epochs": 1}
            self.tell("retrain", final=number, **told)
            self.train({"final": number}, 0.9)
        for number in (0, 1):
            told = {"accuracy": 0.875, "loss": 0.1, "correct": pack_bits(np.arange(8) > number)}
            told |= {"batch_seconds": 0.1, "image_seconds": 0.1}
            self.tell("test", final=number, weights="best", **told)
        self.tell("scored", winner="trial 1", final=0)
        self.tell("end", reason="finished")
        return self

    def write(self, where: Store | None = None) -> Path:
        """Writes its ledger, and delivers it; returns its folder."""
        tiny.write_ledger(self.folder, self.events)
        if where is not None:
            tiny.deliver(where, self.folder)
        return self.folder


@pytest.fixture
def where(tmp_path: Path) -> Store:
    return store.open_store(tmp_path / "mlruns", "digits", create=True)


@pytest.fixture
def mlruns(where: Store, tmp_path: Path) -> Path:
    return tmp_path / "mlruns"


def run(mlruns: Path, *arguments: str) -> tuple[int, list[str]]:
    """Runs the command; returns its exit code, and what it said of each finding."""
    command = [*arguments, "--mlruns", str(mlruns)]
    ended = CliRunner().invoke(doctor.main, command, catch_exceptions=False, standalone_mode=False)
    return ended.return_value, ended.output.splitlines()[:-1]


def check(mlruns: Path, *expected: str, remaining: int = 0, notes: int = 0) -> list[str]:
    """Sees the findings, has them fixed, and sees that nothing (or so many) are left."""
    code, said = run(mlruns)
    assert (code, len(said)) == (1, len(expected)), said
    for line, part in zip(said, expected, strict=True):
        assert part in line
    code, fixed = run(mlruns, "--fix")
    assert code == (1 if remaining else 0), fixed
    code, left = run(mlruns)
    assert (code, len(left)) == (1 if remaining else 0, remaining + notes), left
    return fixed


def delete_for_good(where: Store, run: str) -> None:
    """Does what `mlflow gc` does to a run that was deleted."""
    where.client()._tracking_client.store._hard_delete_run(run)


def runs_of(where: Store) -> dict[str, Any]:
    """Returns the runs by name."""
    client = where.client()
    runs = client.search_runs([where.experiment_id(client)], "", ViewType.ACTIVE_ONLY)
    return {run.info.run_name: run for run in runs}


def artifacts_of(where: Store, run: str) -> Path:
    return Path(runs_of(where)[run].info.artifact_uri.removeprefix("file://"))


def test_nothing_is_wrong_with_a_sweep_whose_runs_a_user_deleted(
    mlruns: Path, where: Store, files: Path
) -> None:
    Told(mlruns, files).search().score().write(where)
    assert run(mlruns) == (0, [])
    for name in ("trial 000", "final 001 trial 1", NAME):
        where.client().delete_run(runs_of(where)[name].info.run_id)
    assert run(mlruns) == run(mlruns, "digits", "--fix") == (0, [])
    assert set(runs_of(where)) == {"trial 001", "final scoring", "final 000 trial 1"}


# Runs


def test_runs_of_a_driver_that_was_killed_are_set_killed_unless_another_is_there(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files)
    told.ask(0.9)
    told.ask(None)
    folder = told.write(where)
    with hold(folder):
        for arguments in ([], ["--fix"]):
            line = f"note: {NAME}: running: a driver holds it, so it is left alone"
            assert run(mlruns, *arguments) == (0, [line])
        assert runs_of(where)[NAME].info.status == "RUNNING"
    (line,) = check(
        mlruns, f"{NAME}: 2 runs RUNNING in MLflow, which no driver runs: {NAME}, trial 001"
    )
    assert line.endswith("fixed: set KILLED")
    found = {name: run.info.status for name, run in runs_of(where).items()}
    assert found == {NAME: "KILLED", "trial 000": "FINISHED", "trial 001": "KILLED"}
    for name in (NAME, "trial 001"):
        assert runs_of(where)[name].info.end_time == told.record.last_time * 1000
    told.begin("search")  # it goes on as if nothing had been
    told.tell("killed", trial=1, attempt=1)
    told.write(where)
    assert runs_of(where)[NAME].info.status == "RUNNING"


def test_runs_that_the_ledger_ended_get_its_status_and_times(
    mlruns: Path, where: Store, files: Path
) -> None:
    Told(mlruns, files).search().score().write(where)
    before = runs_of(where)
    for run_ in before.values():
        where.client().update_run(run_.info.run_id, "RUNNING")
    check(mlruns, "6 runs RUNNING in MLflow, ended by the ledger: ")
    for name, run_ in runs_of(where).items():
        assert run_.info.status == "FINISHED"
        assert run_.info.end_time == before[name].info.end_time


def test_runs_whose_parents_are_gone_get_new_ones(mlruns: Path, where: Store, files: Path) -> None:
    Told(mlruns, files).search().score().write(where)
    before = runs_of(where)
    for name in (NAME, "final scoring"):
        delete_for_good(where, before[name].info.run_id)
    check(
        mlruns,
        "4 runs without the run that they are part of: ",
        "its run is gone: MLflow's store is a new one, or was wiped. --fix: deliver the ledger",
    )
    runs = runs_of(where)
    assert set(runs) == set(before)
    for name, parent in (("trial 000", NAME), ("final 000 trial 1", "final scoring")):
        assert runs[name].info.run_id == before[name].info.run_id
        assert runs[name].data.tags["mlflow.parentRunId"] == runs[parent].info.run_id


def test_a_sweep_without_its_folder_is_told_and_its_runs_are_ended(
    mlruns: Path, where: Store, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(mlruns, files, name="small-20270115-080000")
    told.ask(None)
    shutil.rmtree(told.write(where))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where.uri)  # may be another machine's
    code, (line,) = run(mlruns)
    assert code == 0
    assert "and its ledger is not here: " in line
    assert line.endswith("its driver may be on another machine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check(mlruns, f"{told.folder.name}: 2 runs RUNNING in MLflow, and its ledger is not here: ")
    assert {run.info.status for run in runs_of(where).values()} == {"KILLED"}
    delete_for_good(where, runs_of(where)[told.folder.name].info.run_id)
    code, (line,) = run(mlruns, "--fix")
    assert code == 1
    assert "1 run without the run that they are part of, and its ledger is not here: " in line
    assert line.endswith("Put the sweep's folder back, or delete them in MLflow.")


# Deliveries


def test_a_ledger_that_is_not_delivered_to_its_end_is(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files).search()
    events = told.events
    told.events = events[:5]
    told.write(where)
    size = (told.folder / "ledger.jsonl").stat().st_size
    told.events = events
    undelivered = (told.write() / "ledger.jsonl").stat().st_size - size
    # and what it leaves RUNNING, until it is delivered
    said = f"{undelivered:,} bytes of its ledger are not delivered into MLflow. --fix: deliver the"
    code, lines = run(mlruns)
    assert code == 1
    assert said in lines[0]
    (line,) = run(mlruns, "--fix")[1]
    assert line.endswith("fixed: delivered")
    assert run(mlruns) == (0, [])
    assert set(runs_of(where)) == {NAME, "trial 000", "trial 001"}
    (told.folder / "tracking.json").write_text('{"uri": "')
    check(mlruns, "nothing tells that its ledger was delivered into MLflow")


def test_another_store_gets_what_the_first_has(
    mlruns: Path,
    where: Store,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Told(mlruns, files).search().write(where)
    other = store.open_store(tmp_path / "other", "digits", create=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other.uri)
    where_from, where_to = f"delivered into {where.uri}", f"and not into {other.uri}"
    check(mlruns, f"{where_from}, {where_to}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert set(runs_of(where)) == set(runs_of(other))


def test_a_deleted_database_is_made_anew_without_importing_keras(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files)
    told.ask(0.9)
    told.ask(None)
    told.write(where)
    for file in mlruns.glob("mlflow.db*"):
        file.unlink()
    code, (line,) = run(mlruns)
    assert code == 1
    assert line.endswith(
        "MLflow's database is not there. --fix: make it, and deliver the ledgers into it"
    )
    program = f"""
import sys
from cnn_search import doctor
for fix in (["--fix"], []):
    print(doctor.main.main(["--mlruns", {str(mlruns)!r}, *fix], standalone_mode=False))
print(sorted({{"keras", "tensorflow", "keras_tuner"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert [line.split("fixed: ")[1] for line in said[:3]] == ["made", "delivered", "set KILLED"]
    assert said[3:5] == ["1 sweep looked at: 0 findings, 3 fixed.", "0"]
    assert said[5:] == ["1 sweep looked at: 0 findings.", "0", "[]"]


# Artifacts and models


def test_artifacts_that_are_missing_are_delivered_again(
    mlruns: Path, where: Store, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Told(mlruns, files).search().write(where)
    first, second = (artifacts_of(where, f"trial 00{n}") for n in (0, 1))
    (artifacts_of(where, NAME) / "ledger.jsonl").unlink()
    (first / "curves.png").unlink()
    (first / "summary.txt").unlink()
    (folder / "trials" / "0000" / "summary.txt").unlink()
    shutil.rmtree(second)
    monkeypatch.setattr(figures, "draw_trial", DRAW)
    check(
        mlruns,
        "MLflow lacks ledger.jsonl, summary.txt of trial 0 (gone here too), curves.png of trial",
    )
    assert "summary.txt is not on the disk" in (first / "missing.txt").read_text()
    assert (first / "curves.png").exists()
    assert (second / "configuration.json").exists()
    assert (artifacts_of(where, NAME) / "ledger.jsonl").exists()


def test_a_champion_that_is_no_version_is_registered_again(
    mlruns: Path, where: Store, files: Path
) -> None:
    folder = Told(mlruns, files).search().write(where)
    client = where.client()
    client.delete_registered_model("digits")
    check(mlruns, "the registry lacks the model of trial 1. --fix: deliver the ledger anew")
    assert models.show_model(where, "digits")["version"] == 1
    client.delete_registered_model("digits")
    (folder / "trials" / "0001" / "model.keras").unlink()
    check(mlruns, "the registry lacks the model of trial 1")
    assert "not_registered" in runs_of(where)["trial 001"].data.tags


def test_files_of_a_version_are_uploaded_again_from_the_sweep_s_folder(
    mlruns: Path, where: Store, files: Path, tmp_path: Path
) -> None:
    Told(mlruns, files).search().score().write(where)
    before = models.show_model(where, "digits")
    shutil.rmtree(mlruns / "artifacts")
    check(
        mlruns,
        "MLflow lacks ",
        "digits version 1: its files are gone. --fix: upload them again from ",
        "digits version 2: its files are gone. --fix: upload them again from ",
    )
    _, pulled = models.pull_model(where, "digits", tmp_path)
    assert pulled[0].read_bytes() == (files / "model.keras").read_bytes()
    assert models.show_model(where, "digits") == before
    source = where.client().get_model_version_by_alias("digits", "champion").source
    assert (Path(source.removeprefix("file://")) / "test_scores.json").exists()


def test_a_version_that_is_gone_for_good_is_tagged_and_a_champion_takes_a_person(
    mlruns: Path, where: Store, files: Path
) -> None:
    folder = Told(mlruns, files).search().score().write(where)
    client = where.client()
    shutil.rmtree(client.get_model_version("digits", "2").source.removeprefix("file://"))
    (folder / "final" / "trials" / "0000" / "model.keras").unlink()
    delete_for_good(where, client.get_model_version("digits", "1").run_id)
    command = "python -m cnn_search.registry"
    rest = f"{command} rollback digits, or: {command} promote digits --version N --force"
    fixed = check(
        mlruns,
        "digits version 1: it has lost its run for good. --fix: tag it missing = true",
        "digits version 2: it has lost its files for good. --fix: tag it missing = true",
        f"digits version 2: it is champion, and has lost its files. {rest}",
        remaining=1,
    )
    assert [line.split(". ")[1] for line in fixed[:2]] == ["fixed: tagged", "fixed: tagged"]
    for number in ("1", "2"):
        assert client.get_model_version("digits", number).tags["missing"] == "true"
    aliases.rollback(where, "digits")
    code, (line,) = run(mlruns)
    assert "digits version 1: it is champion, and has lost its run" in line
    client.delete_registered_model_alias("digits", "champion")
    assert run(mlruns) == (0, [])


# Files


def test_files_that_nobody_needs_are_deleted_and_the_others_stay(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files)
    for score in (0.7, 0.9, None):
        told.ask(score)
    folder = told.write(where)
    for run_ in runs_of(where).values():
        where.client().set_terminated(run_.info.run_id, "KILLED")
    needed = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for name in ("trials/0000/checkpoint.npz", "trials/0002/checkpoint.3.partial"):
        (folder / name).write_bytes(bytes(400_000))
    for name in ("images/train_images.npy", "final/images/train_images.npy"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(bytes(2_000_000))
    fixed = check(
        mlruns,
        "checkpoints of trials that ended (1). --fix: delete 0.4 MB",
        "copies of the images for workers (2). --fix: delete 4.0 MB",
        "files that a kill left half written (1). --fix: delete 0.4 MB",
    )
    assert fixed[1].endswith("fixed: 4.0 MB freed")
    left = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert left.pop(folder / "lock") == b""
    assert left == needed


def test_hyperband_keeps_checkpoints_until_it_has_ended(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files, oracle="hyperband").search()
    end = told.events.pop()
    told.tell("end", reason="minutes")
    for number in ("0000", "0001"):
        (told.folder / "trials" / number / "checkpoint.npz").write_bytes(b"may be promoted")
    told.write(where)
    assert run(mlruns, "--fix") == (0, [])
    told.events[-1] = end
    told.write(where)
    check(mlruns, "checkpoints of trials that ended (2)")


def test_other_weights_of_retrainings_are_needed_until_they_are_scored(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files).search().score()
    (told.folder / "final" / "trials" / "0001" / "last.keras").write_bytes(b"")
    (told.folder / "final" / "trials" / "0001" / "checkpoint.npz").write_bytes(b"")
    told.write(where)
    scored = told.events
    told.events = scored[:-2]
    told.write()
    assert "other weights" not in " ".join(run(mlruns)[1])
    told.events = scored
    told.write()
    check(mlruns, "checkpoints of trials that ended", "other weights of retrainings")


# Ledgers and the database


def test_a_torn_last_line_is_cut_off(mlruns: Path, where: Store, files: Path) -> None:
    path = Told(mlruns, files).search().write(where) / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 12, "time"')
    check(mlruns, "its ledger's last line is torn (16 bytes of a write that a kill cut short)")
    assert path.read_bytes() == whole


def test_a_damaged_ledger_is_told_and_the_next_sweep_looked_at(
    mlruns: Path, where: Store, files: Path
) -> None:
    path = Told(mlruns, files).search().write(where) / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"score": 0.9', b'"score": 0.8'))
    damaged = path.read_bytes()
    other = Told(mlruns, files, name="digits-20270115-090000").search().write(where)
    (other / "images").mkdir()
    code, (line, _) = run(mlruns)
    assert code == 1
    assert f"{NAME}: " in line
    assert "is damaged (expected a whole JSON object with its own check; " in line
    assert "Restore the file from a copy, or start anew with --new." in line
    code, (again, fixed) = run(mlruns, "--fix")
    assert code == 1
    assert again == line
    assert "fixed: 0.0 MB freed" in fixed
    assert path.read_bytes() == damaged


def test_other_versions_in_a_later_session_are_noted(
    mlruns: Path, where: Store, files: Path
) -> None:
    told = Told(mlruns, files).search()
    told.begin("search", keras="3.16.0")
    told.tell("end", reason="finished")
    told.write(where)
    said = "its sessions had keras 3.15.0, then 3.16.0: curves may differ by that"
    assert run(mlruns) == run(mlruns, "--fix") == (0, [f"note: {NAME}: {said}"])
    assert not any(Path(mlruns / "sweeps").glob("*/*.partial"))


def test_a_database_that_is_not_in_wal_mode_is_switched(tmp_path: Path) -> None:
    store._create(tmp_path / "mlflow.db")  # which MLflow has not opened yet: it would hold it
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    (line,) = check(tmp_path, "mlflow.db: its journal mode is delete, which doubles the time of")
    assert line.endswith("fixed: journal mode is wal")


def test_a_damaged_database_is_told_and_the_files_are_looked_at(
    tmp_path: Path, files: Path
) -> None:
    told = Told(tmp_path, files).search()
    (told.write() / "images").mkdir()
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 99)
    code, (line, fixed) = run(tmp_path, "--fix")
    assert code == 1
    assert "mlflow.db: expected an SQLite database; received file is not a database" in line
    assert "move it away: then --fix makes one from the ledgers." in line
    assert "freed" in fixed


def test_a_server_that_is_away_is_told_once_and_the_files_are_looked_at(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (NAME, "small-20270115-080000"):
        (Told(tmp_path, files, name=name).search().write() / "images").mkdir()
    away = f"http://user:k9-Zx4@127.0.0.1:{tiny.free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    code, lines = run(tmp_path, "--fix")
    assert code == 1
    assert [line.split(": ")[0] for line in lines] == ["MLflow", NAME, "small-20270115-080000"]
    assert lines[0].startswith("MLflow: expected an answer from http://127.0.0.1:")
    assert "k9-Zx4" not in lines[0]
    assert run(tmp_path)[0] == 1


# The command


def test_a_fix_that_fails_is_told_and_the_finding_remains(
    mlruns: Path, where: Store, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Told(mlruns, files).search().write(where) / "images").mkdir()

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    code, (line,) = run(mlruns, "--fix")
    assert code == 1
    assert "it could not be fixed: [Errno 13] Permission denied" in line


def test_findings_are_told_as_json(mlruns: Path, where: Store, files: Path) -> None:
    (Told(mlruns, files).search().write(where) / "images").mkdir()
    found = {
        "where": NAME,
        "what": "copies of the images for workers (1)",
        "remedy": "delete 0.0 MB",
        "state": "found",
    }
    command = ["--json", "--mlruns", str(mlruns)]
    told = CliRunner().invoke(doctor.main, command, catch_exceptions=False)
    assert json.loads(told.output) == [found]
    told = CliRunner().invoke(doctor.main, [*command, "--fix"], catch_exceptions=False)
    assert json.loads(told.output) == [{**found, "state": "fixed", "result": "0.0 MB freed"}]


def test_a_sweep_that_never_ran_and_a_folder_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"there is none called 'digitz' in .* Correct the name"):
        run(tmp_path, "digitz")
    with pytest.raises(LedgerError, match="doctor: expected a folder of sweeps; there is no "):
        run(tmp_path / "none")
    assert run(tmp_path) == (0, [])
    assert not list(tmp_path.iterdir())
