"""Tests of the surface in Python: `import cnn_search`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_tracking as tiny

import cnn_search
from cnn_search.ledger import Record

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
SMALL = {"epochs": 2, "train_limit": 200, "final__seeds": 2, "final__top": 1}


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        tiny.forget_the_user(patch)
        cnn_search.run("digits", mlruns=folder, trials=2, recipes=False, **SMALL)
    return folder


@pytest.fixture
def sweep(mlruns: Path) -> cnn_search.Sweep:
    return cnn_search.load("digits", mlruns=mlruns)


@pytest.fixture
def record(sweep: cnn_search.Sweep) -> Record:
    return sweep.record


def test_the_surface_is_small_and_its_import_light() -> None:
    assert cnn_search.__all__ == sorted(cnn_search.__all__)
    assert len(cnn_search.__all__) <= 8
    for name in cnn_search.__all__:
        assert getattr(cnn_search, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        cnn_search.sweeps  # noqa: B018
    heavy = "{'tensorflow', 'keras', 'mlflow', 'pandas', 'rich', 'click'}"
    program = f"import sys, cnn_search; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_trials_are_a_row_each(sweep: cnn_search.Sweep, record: Record) -> None:
    frame = sweep.trials()
    assert list(frame.index) == list(record.trials)
    assert frame.index.name == "trial"
    book = frame.loc[0]
    assert (book["source"], book["name"], book["status"]) == ("baseline", "vgg_bn", "finished")
    for number, trial in record.trials.items():
        row = frame.loc[number]
        assert row["score"] == trial.result["score"]
        assert row["parameters"] == trial.result["parameters"]
        assert {name: row[name] for name in trial.values} == trial.values


def test_curves_are_a_row_an_epoch(sweep: cnn_search.Sweep, record: Record) -> None:
    frame = sweep.curves()
    assert frame.index.names == ["trial", "epoch"]
    assert len(frame) == record.epochs == 4
    for number, trial in record.trials.items():
        for epoch, metrics in trial.curve.items():
            assert frame.loc[(number, epoch)][list(metrics)].to_dict() == metrics


def test_finals_have_their_test_scores(sweep: cnn_search.Sweep, record: Record) -> None:
    frame = sweep.finals()
    assert len(frame) == len(record.finals) == 4
    assert set(frame["finalist"]) == {"vgg_bn", "trial 1"}
    weights = record.definition["training"]["weights"]
    for number, trial in record.finals.items():
        assert frame.loc[number, "test_accuracy"] == trial.tests[weights]["accuracy"]


def test_the_answer_is_the_reports(sweep: cnn_search.Sweep) -> None:
    page = sweep.report()
    assert sweep.answer()["state"] == "scored"
    assert sweep.answer()["sentence"] in page.with_suffix(".md").read_text()
    assert repr(sweep) == f"{sweep.folder.name}: {sweep.answer()['sentence']}"


def test_the_best_model_predicts(mlruns: Path, record: Record) -> None:
    champion = cnn_search.best("digits", mlruns=mlruns)
    rows = champion.model.predict(np.zeros((2, 8, 8, 1), np.uint8), verbose=0)
    assert rows.shape == (2, len(champion.class_names))
    assert champion.class_names == tuple(record.header["data"]["class_names"])


def test_the_same_call_goes_on(mlruns: Path, sweep: cnn_search.Sweep) -> None:
    again = cnn_search.run("digits", mlruns=mlruns, trials=2, recipes=False, **SMALL)
    assert again.folder == sweep.folder
    assert len(again.trials()) == 2


def test_tries_are_made_and_nothing_is_scored_if_told_so(tmp_path: Path) -> None:
    tries = [{"depth": 1, "filters_1": 8}]
    sweep = cnn_search.run("digits", mlruns=tmp_path, trials=2, tries=tries, final=False, **SMALL)
    frame = sweep.trials()
    assert list(frame["source"]) == ["baseline", "try"]
    assert (frame.loc[1, "depth"], frame.loc[1, "filters_1"]) == (1, 8)
    assert len(sweep.finals()) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trails": 3}, "trails"),
        ({"training__epoch": 3}, "no such key; did you mean epochs"),
        ({"oracle": "bayes"}, "expected 'random', 'grid'"),
        ({"trials": 0}, "trials"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(cnn_search.CnnSearchError, match=said):
        cnn_search.run("digits", mlruns=tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_never_ran_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(cnn_search.CnnSearchError, match="a sweep called 'nothing'"):
        cnn_search.load("nothing", mlruns=tmp_path)
