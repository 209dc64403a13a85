"""Tests of `cnn_search.models` and the registry command: from a real sweep to a model elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_tracking as tiny
from click.testing import CliRunner, Result

from cnn_search import (
    aliases,
    commands,
    datasets,
    evidence,
    models,
    promotion,
    registry,
    store,
    tracking,
)
from cnn_search.errors import TrackingError
from cnn_search.ledger import Event, read_record
from cnn_search.store import Store

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


@pytest.fixture(scope="session")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sweep(tmp_path_factory)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return store.open_store(tmp_path / "mlruns", "digits", create=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.draw_as_before(monkeypatch)


@pytest.fixture(scope="module")
def images() -> Any:
    return datasets.load("digits", train_limit=300).validation.images[:8]


def champion_of(mlruns: Path) -> Any:
    record = read_record(tiny.folder_of(mlruns) / "ledger.jsonl")
    assert record.champion is not None
    return record.trials[record.champion]


def probabilities(mlruns: Path, images: Any) -> Any:
    """Returns what the champion's own file predicts in this process."""
    import keras

    number = champion_of(mlruns).number
    model = keras.models.load_model(
        tiny.folder_of(mlruns) / "trials" / f"{number:04d}" / "model.keras"
    )
    return keras.ops.convert_to_numpy(model(images, training=False))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(registry.main, [str(a) for a in arguments], catch_exceptions=False)


def run_elsewhere(code: str, folder: Path) -> str:
    """Runs code in a process that stands elsewhere and cannot import cnn_search."""
    quiet = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    quiet |= {"PYTHONSAFEPATH": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The registered model


def test_the_champion_has_its_evidence_classes_signature_and_example(
    mlruns: Path, tmp_path: Path
) -> None:
    import mlflow

    where, trial = store.open_store(mlruns, "digits"), champion_of(mlruns)
    client = where.client()
    version = client.get_model_version_by_alias("digits", "champion")
    assert int(version.version) == 1
    assert version.tags["evidence"] == "validation"
    assert version.tags["cnn_search.trial"] == str(trial.number)
    assert version.tags["val_accuracy"] == f"{trial.result['score']:.6f}"
    assert json.loads(version.tags["class_names"]) == list("0123456789")
    assert "not yet an answer" in version.description
    assert version.run_id == tiny.runs_of(where)[f"{trial.number}-1"].info.run_id
    path = mlflow.artifacts.download_artifacts(
        version.source, dst_path=str(tmp_path), tracking_uri=where.uri
    )
    told = mlflow.models.Model.load(path)
    assert told.signature.inputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "uint8",
        "shape": (-1, 8, 8, 1),
    }
    assert told.signature.outputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "float32",
        "shape": (-1, 10),
    }
    assert told.metadata == {"class_names": list("0123456789")}
    assert told.model_id == version.tags["model_id"]
    needs = (Path(path) / "requirements.txt").read_text().split()
    assert "tensorflow" in needs
    assert any(line.startswith("keras==") for line in needs)
    example = client.download_artifacts(version.run_id, "example_input.json", str(tmp_path))
    inputs = np.array(json.loads(Path(example).read_text())["inputs"])
    assert inputs.shape == (1, 8, 8, 1)
    assert inputs.max() <= 255
    classes = client.download_artifacts(version.run_id, "class_names.json", str(tmp_path))
    assert json.loads(Path(classes).read_text()) == list("0123456789")


def test_a_process_without_us_loads_the_champion_and_predicts_the_same(
    mlruns: Path, images: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    run_elsewhere(
        f"""
import sys
import mlflow, mlflow.keras, numpy as np
mlflow.set_tracking_uri("sqlite:///{mlruns}/mlflow.db")
images = np.load("images.npy")
model = mlflow.keras.load_model("models:/digits@champion")
np.save("direct.npy", model(images, training=False))
served = mlflow.pyfunc.load_model("models:/digits@champion")  # checks the signature
np.save("served.npy", served.predict(images))
assert "cnn_search" not in sys.modules
assert "search_spaces" not in sys.modules
""",
        tmp_path,
    )
    expected = probabilities(mlruns, images)
    assert np.array_equal(np.load(tmp_path / "direct.npy"), expected)
    served = np.load(tmp_path / "served.npy")
    assert served.dtype == np.float32
    assert np.allclose(served, expected, atol=1e-6)
    assert np.allclose(served.sum(axis=1), 1, atol=1e-5)


def better(events: list[Event], number: int, score: float) -> list[Event]:
    """Tells how a finished sweep went on: one more trial, which is the best."""
    of = {(e["kind"], e.get("epoch")): e for e in events if e.get("trial") == 0}
    asked = {**of["ask", None], "values": {**of["ask", None]["values"], "dropout": score}}
    told = [events[1], asked, of["start", None], of["epoch", 1], of["epoch", 2]]
    told += [{**of["done", None], "score": score}, {"kind": "champion"}]
    told = [{**event, "trial": number} for event in told]
    told.append({"kind": "end", "reason": "finished"})
    return [{**event, "time": events[-1]["time"] + n} for n, event in enumerate(told)]


@pytest.mark.usefixtures("drawn")
def test_a_better_trial_is_version_2_and_takes_the_alias(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    events = tiny.events_of(tiny.folder_of(mlruns))
    folder = tiny.copy_of(mlruns, tmp_path, events)
    tiny.deliver(empty, folder)
    shutil.copytree(folder / "trials" / "0000", folder / "trials" / "0003")
    tiny.write_ledger(folder, [*events, *better(events, 3, 0.98)])
    for _ in range(2):  # registered twice, it is one version
        tiny.deliver(empty, folder)
        (folder / "tracking.json").unlink()
    client = empty.client()
    versions = client.search_model_versions("name = 'digits'")
    assert sorted((int(v.version), v.tags["cnn_search.trial"]) for v in versions) == [
        (1, str(champion_of(mlruns).number)),
        (2, "3"),
    ]
    assert models.show_model(empty, "digits")["version"] == 2
    assert models.show_model(empty, "digits")["score"] == 0.98
    assert len(client.search_logged_models([tiny.runs_of(empty)["parent"].info.experiment_id])) == 2


@pytest.mark.usefixtures("drawn")
def test_a_former_champion_without_weights_does_not_stop_the_delivery(
    mlruns: Path, empty: Store, tmp_path: Path
) -> None:
    # only the best few keep their weights; a wiped store asked for the first champion's for ever
    events = tiny.events_of(tiny.folder_of(mlruns))
    folder = tiny.copy_of(mlruns, tmp_path, events)
    shutil.copytree(folder / "trials" / "0000", folder / "trials" / "0003")
    tiny.write_ledger(folder, [*events, *better(events, 3, 0.98)])
    former = champion_of(mlruns).number
    (folder / "trials" / f"{former:04d}" / "model.keras").unlink()
    tiny.deliver(empty, folder)
    assert models.show_model(empty, "digits")["trial"] == 3
    run = tiny.runs_of(empty)[f"{former}-1"]
    assert run.data.tags["not_registered"] == "its weights are no longer on the disk"


# The command


def test_list_and_show_tell_the_champion(mlruns: Path) -> None:
    trial = champion_of(mlruns)
    listed = run("list", "--mlruns", mlruns).output
    assert listed.startswith("digits ")
    assert f"val_accuracy {trial.result['score']:.4f} (evidence: validation)" in listed
    (told,) = json.loads(run("list", "--json", "--mlruns", mlruns).output)
    assert told == json.loads(run("show", "digits", "--json", "--mlruns", mlruns).output)
    assert told["score"] == pytest.approx(trial.result["score"], abs=1e-6)
    assert told["trial"] == trial.number
    assert told["parameters"] == trial.result["parameters"]
    assert told["class_names"] == list("0123456789")
    assert told["uri"] == "models:/digits@champion"
    assert told["hyperparameters"]["depth"] == str(trial.values["depth"])
    shown = run("show", "digits", "--mlruns", mlruns).output
    assert "classes: 0, 1, 2, 3" in shown
    assert f'mlflow.keras.load_model("{told["uri"]}")' in shown


def test_pull_writes_files_that_keras_alone_opens(
    mlruns: Path, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    target = tmp_path / "a new" / "folder"
    written = run("pull", "digits", "--to", target, "--mlruns", mlruns).output.splitlines()
    assert [Path(line).name for line in written] == [
        *("digits.keras", "digits.classes.json", "digits.configuration.json")
    ]
    assert sorted(target.iterdir()) == sorted(map(Path, written))
    assert not list(Path().iterdir())  # MLflow's global store is ./mlflow.db
    assert json.loads((target / "digits.classes.json").read_text()) == list("0123456789")
    configuration = json.loads((target / "digits.configuration.json").read_text())
    assert configuration["values"] == champion_of(mlruns).values
    np.save(target / "images.npy", images)
    run_elsewhere(
        """
import sys
import keras, numpy as np
images = np.load("images.npy")
assert images.dtype == np.uint8
model = keras.models.load_model("digits.keras")
np.save("predicted.npy", model(images, training=False))
assert not {"cnn_search", "search_spaces", "mlflow"} & set(sys.modules)
""",
        target,
    )
    assert np.array_equal(np.load(target / "predicted.npy"), probabilities(mlruns, images))


def test_an_unknown_name_is_answered_with_those_there_are(mlruns: Path) -> None:
    for command in ("show", "pull"):
        with pytest.raises(TrackingError, match=r"one of digits; received \"di'gits\"\. Run"):
            run(command, "di'gits", "--mlruns", mlruns)


def test_an_empty_registry_says_so(empty: Store, tmp_path: Path) -> None:
    assert run("list", "--mlruns", tmp_path / "mlruns").output.startswith("No model is registered")
    assert json.loads(run("list", "--json", "--mlruns", tmp_path / "mlruns").output) == []
    with pytest.raises(TrackingError, match="one of none; received 'digits'"):
        run("show", "digits", "--mlruns", tmp_path / "mlruns")


def test_models_of_others_on_the_same_server_are_left_alone(empty: Store, tmp_path: Path) -> None:
    client = empty.client()
    client.create_registered_model("foreign")
    version = client.create_model_version("foreign", (tmp_path / "model").as_uri())
    client.set_registered_model_alias("foreign", "champion", version.version)
    assert models.list_models(empty) == []
    with pytest.raises(TrackingError, match="received 'foreign'"):
        models.show_model(empty, "foreign")


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        *([command, "digits"] for command in ("show", "pull", "history", "rollback", "promote")),
    ],
)
def test_without_a_database_the_command_ends_with_one_line_and_creates_nothing(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["registry", *command])
    with pytest.raises(SystemExit) as ended:
        commands.start(registry.main, "registry")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "error: mlruns: expected MLflow's database, mlflow.db; there is none. Run a" in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(mlruns: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match=r"write digits into .*/x; received .* another --to"):
        run("pull", "digits", "--to", tmp_path / "file" / "x", "--mlruns", mlruns)


@pytest.mark.parametrize("module", [aliases, evidence, models, promotion, tracking])
def test_mlflow_is_told_how_to_behave_before_it_is_imported(module: Any) -> None:
    # `registry list` reached mlflow through models, before store had switched its telemetry off
    source = Path(module.__file__).read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    first = next(line for line in lines if "mlflow" in line or "cnn_search" in line)
    assert "cnn_search.store" in first
