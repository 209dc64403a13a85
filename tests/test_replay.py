"""Tests of `replay`: trials of real sweeps, trained again from what MLflow alone has of them."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from matplotlib.figure import Figure

from cnn_search import (
    datasets,
    definition,
    engines,
    figures,
    final,
    recorded,
    replay,
    reproduction,
    search,
    store,
)
from cnn_search.definition import FinalTable
from cnn_search.errors import CnnSearchError, DataError, TrackingError
from cnn_search.ledger import Record
from cnn_search.recorded import Recorded
from search_spaces.images import Space

pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
ROOT = Path(__file__).parents[1]
TINY = {
    "depth": 1,
    "convolutions": 1,
    "residual": False,
    "filters_1": [8, 16],
    "padding_1": "same",
    "pooling_1": "max",
    "dense_units": [0, 64],
    "batch_size": 64,
}
SMALL = {"training.epochs": 2, "trials": 3, "space": TINY, "train_limit": 200}


class Sweep(NamedTuple):
    """A sweep of which MLflow alone is left, and what its ledger said."""

    mlruns: Path
    record: Record

    @property
    def name(self) -> str:
        return str(self.record.header["sweep"])

    def run_of(self, **tags: object) -> str:
        """Returns the id of the one run that has these tags of ours."""
        with contextlib.closing(sqlite3.connect(self.mlruns / "mlflow.db")) as connection:
            found: list[set[str]] = []
            for key, value in {"sweep": self.name, **tags}.items():
                query = "SELECT run_uuid FROM tags WHERE key = ? AND value = ?"
                rows = connection.execute(query, (f"cnn_search.{key}", str(value)))
                found.append({row[0] for row in rows})
        (run,) = set.intersection(*found)
        return run


@pytest.fixture(scope="module", autouse=True)
def _own_store() -> Iterator[None]:
    """Forgets the user's settings, and draws no pictures: nobody looks at them here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(figures, "draw_trial", lambda *rest: ([], []))
        patch.setattr(figures, "draw_samples", lambda *rest: Figure(figsize=(1, 1)))
        yield


def copy_store(source: Path, mlruns: Path) -> Path:
    """Copies a database, which takes seconds to create, into `mlruns`."""
    mlruns.mkdir()
    with (
        contextlib.closing(sqlite3.connect(source / "mlflow.db")) as before,
        contextlib.closing(sqlite3.connect(mlruns / "mlflow.db")) as after,
    ):
        before.backup(after)
    return mlruns


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with an empty database of MLflow's."""
    folder = tmp_path_factory.mktemp("empty")
    store.open_store(folder, "digits", create=True)
    return folder


def swept(mlruns: Path, changes: dict[str, Any], name: str = "digits") -> Sweep:
    """Runs a sweep and deletes its folder: ledger, models, checkpoints."""
    sweep = definition.read(name, {**SMALL, **changes})
    dataset = datasets.load(sweep.data, data_dir=sweep.data_dir, train_limit=sweep.train_limit)
    outcome = search.run(sweep, dataset, mlruns)
    assert outcome.undelivered == ""
    shutil.rmtree(mlruns / "sweeps")
    return Sweep(mlruns, outcome.record)


@pytest.fixture(scope="module")
def scored(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A search of three trials and its final scoring, two seeds of the book's and of the best."""
    mlruns = copy_store(empty, tmp_path_factory.mktemp("scored") / "mlruns")
    dataset = datasets.load("digits", train_limit=200)
    folder = search.run(definition.read("digits", SMALL), dataset, mlruns).folder
    outcome = final.run(folder, dataset, mlruns, FinalTable(top=1, seeds=2))
    assert outcome.undelivered == ""
    shutil.rmtree(mlruns / "sweeps")
    return Sweep(mlruns, outcome.record)


@pytest.fixture
def changed(scored: Sweep, tmp_path: Path) -> Callable[..., Sweep]:
    """Returns what copies the store of `scored`, runs SQL on the copy, and returns its sweep."""

    def copy(*statements: tuple[str, tuple[object, ...]]) -> Sweep:
        mlruns = copy_store(scored.mlruns, tmp_path / "mlruns")
        with contextlib.closing(sqlite3.connect(mlruns / "mlflow.db")) as connection:
            for statement, values in statements:
                assert connection.execute(statement, values).rowcount > 0, statement
            connection.commit()
        return Sweep(mlruns, scored.record)

    return copy


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be trained."""
    monkeypatch.setattr("cnn_search.training.train", None)


@pytest.fixture
def play(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Returns what runs the command in this process: exit code, JSON, stderr."""

    def run(sweep: Sweep, *arguments: object) -> tuple[int, dict[str, Any], str]:
        typed = [*map(str, arguments), "--json", "--mlruns", str(sweep.mlruns)]
        code = replay.main.main(typed, standalone_mode=False)
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


Play = Callable[..., tuple[int, dict[str, Any], str]]


# What MLflow has


def test_mlflow_keeps_every_metric_of_every_epoch_to_the_last_digit(scored: Sweep) -> None:
    for which, trials in (("trial", scored.record.trials), ("final", scored.record.finals)):
        for number, trial in trials.items():
            found = recorded.find(scored.mlruns, "digits", **{which: number})
            assert found.curve.keys() == trial.curve.keys()
            for epoch, metrics in trial.curve.items():
                assert metrics.items() <= found.curve[epoch].items()
            assert (found.seed, found.epochs, found.score) == (
                trial.seed,
                trial.epochs,
                trial.result["score"],
            )
            assert found.threads == {1}
            assert found.missing == []


def test_a_text_of_mlflow_becomes_the_value_that_it_was() -> None:
    class Declared:
        def __init__(self, default: object) -> None:
            self.default = default

    values = [(1, 0), (True, False), (0.1, 0.5), (1e-05, 0.5), ("1", "2"), ("None", "x")]
    for value, default in values:
        found = reproduction._typed(str(value), Declared(default))
        assert (found, type(found)) == (value, type(value))
    assert reproduction._typed("same", None) == "same"  # declared in `fit`, if anywhere


# What is reproduced


@pytest.mark.parametrize("how", ["run", "name", "whole name"])
def test_a_trial_is_reproduced_exactly_without_the_sweep_s_folder(
    scored: Sweep, play: Play, how: str
) -> None:
    arguments: dict[str, list[object]] = {
        "run": [scored.run_of(trial=1)],
        "name": ["digits", "--trial", 1],
        "whole name": [scored.name, "--trial", 1],
    }
    code, result, err = play(scored, *arguments[how])
    assert code == 0
    assert result["verdict"] == "exactly"
    assert result["reproduced"]
    assert result["first_difference"] is None
    assert result["epochs"] == {"recorded": 2, "replayed": 2}
    assert result["run"] == scored.run_of(trial=1)
    score = scored.record.trials[1].result["score"]
    assert result["score"] == {"recorded": score, "replayed": score}
    last = scored.record.trials[1].curve[2]["val_accuracy"]
    assert f"epoch 2/2 val_accuracy {last:.4f}, as recorded" in err.splitlines()


def test_the_baseline_is_reproduced_and_said_in_words(
    scored: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["digits", "--trial", "0", "--mlruns", str(scored.mlruns)]
    assert replay.main.main(typed, standalone_mode=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"trial 0 of {scored.name}: reproduced exactly",
        "  every metric of 2 epochs is equal to the last digit",
    ]


def test_a_retraining_of_the_final_scoring_is_reproduced_exactly(scored: Sweep, play: Play) -> None:
    for number, arguments in ((0, [scored.run_of(final=0)]), (3, ["digits", "--final", 3])):
        code, result, _ = play(scored, *arguments)
        assert (code, result["verdict"]) == (0, "exactly")
        finalist = scored.record.finals[number].finalist
        assert result["trial"] == f"final {number} ({finalist}) of {scored.name}"
        assert result["other_seeds"] == 1


def test_nothing_is_written(changed: Callable[..., Sweep], play: Play) -> None:
    copy = changed()

    def everything() -> tuple[list[str], list[Path]]:
        with contextlib.closing(sqlite3.connect(copy.mlruns / "mlflow.db")) as connection:
            return list(connection.iterdump()), [
                path for path in copy.mlruns.rglob("*") if not path.name.startswith("mlflow.db")
            ]

    before = everything()
    assert play(copy, "digits", "--trial", 0)[0] == 0
    assert everything() == before


@pytest.mark.slow
def test_a_trial_of_signs_is_reproduced_exactly(
    empty: Path, tmp_path: Path, data_dir: Path, play: Play
) -> None:
    changes = {"data_dir": str(data_dir), "trials": 2, "space": {**TINY, "filters_1": 8}}
    sweep = swept(copy_store(empty, tmp_path / "mlruns"), changes, "signs")
    code, result, _ = play(sweep, "signs", "--trial", 1)
    assert (code, result["verdict"]) == (0, "exactly")
    assert result["epochs"] == {"recorded": 2, "replayed": 2}


@pytest.mark.slow
def test_an_attempt_s_run_stands_for_its_whole_trial(
    empty: Path, tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after its first epoch, the trial goes on as a second attempt."""
    real = engines.train

    def interrupted(task: Any, setup: Any, dataset: Any, emit: Any, stop: Any) -> None:
        real(task, setup, dataset, emit, lambda: "epoch" if task.attempt == 1 else "")

    with monkeypatch.context() as patch:
        patch.setattr(engines, "train", interrupted)
        sweep = swept(copy_store(empty, tmp_path / "mlruns"), {"trials": 1, "training.epochs": 3})
    assert sweep.record.trials[0].attempt == 2
    for attempt in (1, 2):
        code, result, err = play(sweep, sweep.run_of(trial=0, attempt=attempt))
        assert (code, result["verdict"]) == (0, "exactly")
        assert result["epochs"] == {"recorded": 3, "replayed": 3}
        assert result["run"] == sweep.run_of(trial=0, attempt=2)
        assert err.count("as recorded") == 3


def test_a_trial_that_was_cut_short_is_replayed_as_far_as_it_came(
    changed: Callable[..., Sweep], scored: Sweep, play: Play
) -> None:
    run = scored.run_of(trial=1)
    sweep = changed(
        ("UPDATE runs SET status = 'KILLED' WHERE run_uuid = ?", (run,)),
        ("DELETE FROM metrics WHERE step = 2 AND run_uuid = ?", (run,)),
    )
    code, result, _ = play(sweep, run)
    assert (code, result["verdict"]) == (0, "exactly")
    assert result["epochs"] == {"recorded": 1, "replayed": 1}


@pytest.fixture(scope="module")
def hyperband(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    mlruns = copy_store(empty, tmp_path_factory.mktemp("hyperband") / "mlruns")
    return swept(mlruns, {"oracle.kind": "hyperband", "training.epochs": 3})


@pytest.mark.slow
def test_a_promoted_trial_is_trained_from_its_parent_s_first_epoch_on(
    hyperband: Sweep, play: Play
) -> None:
    promoted = next(t for t in hyperband.record.trials.values() if t.parent is not None)
    assert min(promoted.curve) > 1
    code, result, err = play(hyperband, "digits", "--trial", promoted.number)
    assert (code, result["verdict"]) == (0, "exactly")
    assert result["epochs"] == {"recorded": 3, "replayed": 3}
    assert result["missing_epochs"] == []
    assert err.count("as recorded") == 3


@pytest.mark.slow
def test_what_is_left_of_a_promoted_trial_is_compared(
    hyperband: Sweep, play: Play, tmp_path: Path
) -> None:
    promoted = next(t for t in hyperband.record.trials.values() if t.parent is not None)
    sweep = Sweep(copy_store(hyperband.mlruns, tmp_path / "mlruns"), hyperband.record)
    parent = sweep.run_of(trial=promoted.parent)
    with contextlib.closing(sqlite3.connect(sweep.mlruns / "mlflow.db")) as connection:
        connection.execute(
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", (parent,)
        )
        connection.commit()
        code, result, _ = play(sweep, "digits", "--trial", promoted.number)
        assert (code, result["verdict"]) == (0, "exactly")
        assert result["missing_epochs"] == list(range(1, min(promoted.curve)))
        assert "not on record, so not compared: epochs 1" in reproduction.describe(result)
        connection.execute(
            "UPDATE runs SET lifecycle_stage = 'active' WHERE run_uuid = ?", (parent,)
        )
        connection.execute(
            "UPDATE params SET value = '7' WHERE key = 'seed' AND run_uuid = ?", (parent,)
        )
        connection.commit()
    with pytest.raises(TrackingError, match="they differ, so the two are not one training"):
        play(sweep, "digits", "--trial", promoted.number)


# What is not


def nudge(run: str, metric: str = "val_loss") -> tuple[str, tuple[object, ...]]:
    """Returns SQL that changes a metric of the second epoch in its last digits."""
    statement = "UPDATE metrics SET value = value * ? WHERE key = ? AND step = 2 AND run_uuid = ?"
    return statement, (1 + 1e-12, metric, run)


def test_a_metric_that_differs_in_its_last_digits_is_not_reproduced(
    changed: Callable[..., Sweep], scored: Sweep, play: Play
) -> None:
    lost = next(t for t in scored.record.trials.values() if t.values not in retrained(scored))
    run = scored.run_of(trial=lost.number)
    code, result, err = play(changed(nudge(run)), run)
    assert (code, result["verdict"], result["reproduced"]) == (1, "not", False)
    first = result["first_difference"]
    assert (first["epoch"], first["metric"]) == (2, "val_loss")
    assert first["replayed"] == lost.curve[2]["val_loss"] != first["recorded"]
    assert (result["spread"], result["other_seeds"]) == (None, 0)
    assert "epoch 1/2 val_accuracy" in err
    assert f"not as recorded: val_loss was {first['recorded']!r}, is {first['replayed']!r}" in err
    lines = reproduction.describe(result).splitlines()
    assert lines[0].endswith(": not reproduced")
    assert f"  first difference: val_loss {first['recorded']!r} on record, " in lines[1]
    assert "too few for an interval" in lines[3]
    assert lines[4].startswith("  what differs: ")


def retrained(scored: Sweep) -> list[dict[str, Any]]:
    return [trial.values for trial in scored.record.finals.values()]


@pytest.mark.parametrize(
    ("others", "code", "verdict"),
    [((0.0, 1.0), 0, "within the seed spread"), ((-1.0, -1.0), 1, "not")],
)
def test_other_seeds_say_how_far_a_score_may_lie(
    changed: Callable[..., Sweep],
    scored: Sweep,
    play: Play,
    others: tuple[float, float],
    code: int,
    verdict: str,
) -> None:
    book = scored.record.trials[0]
    finals = [n for n, trial in scored.record.finals.items() if trial.values == book.values]
    run = scored.run_of(trial=0)
    rewritten = "UPDATE latest_metrics SET value = ? WHERE key = ? AND run_uuid = ?"
    sweep = changed(
        nudge(run),
        *(
            (rewritten, (score, "best_val_accuracy", scored.run_of(final=number)))
            for number, score in zip(finals, others, strict=True)
        ),
    )
    got, result, _ = play(sweep, run)
    assert (got, result["verdict"]) == (code, verdict)
    low, high = result["spread"]["low"], result["spread"]["high"]
    assert result["spread"]["n"] == 2
    assert (low <= result["score"]["replayed"] <= high) == (code == 0)
    assert f"of 2 other seeds: {low:.4f} to {high:.4f}" in reproduction.describe(result)


def test_the_interval_is_that_of_one_more_score() -> None:
    # mean 3, standard deviation 1; t(.975, 2) = 4.302653, Student 1908
    low, high = reproduction.prediction_interval([2, 3, 4]) or (0, 0)
    assert (low + high) / 2 == pytest.approx(3)
    assert (high - low) / 2 == pytest.approx(4.302653 * np.sqrt(4 / 3))
    assert reproduction.prediction_interval([0.5]) is None


def test_fewer_epochs_than_on_record_are_not_the_same() -> None:
    curve = {1: {"loss": 1.0}, 2: {"loss": 0.5}}
    whole = Recorded(
        title="trial 1 of digits",
        run="",
        definition=definition.read("digits"),
        tags={},
        hyperparameters={},
        seed=1,
        epochs=5,
        threads=frozenset([1]),
        curve=curve,
        score=0.5,
        failure=(),
        others=[],
    )
    short = reproduction.Replayed({1: {"loss": 1.0}}, 0.5, ())
    result = reproduction.judge(whole, short, [])
    assert result["verdict"] == "not"
    assert result["first_difference"] == {
        "epoch": 1,
        "metric": "epochs",
        "recorded": 2,
        "replayed": 1,
    }
    assert "what differs: nothing on record" in reproduction.describe(result)


def test_the_same_epochs_with_another_score_are_not_the_same() -> None:
    """A prediction may be the mean of several views, of which no epoch tells."""
    curve = {1: {"loss": 1.0}}
    whole = Recorded(
        "trial 1 of digits",
        "",
        definition.read("digits"),
        {},
        {},
        1,
        1,
        frozenset([1]),
        curve,
        0.5,
        (),
        [],
    )
    same = reproduction.judge(whole, reproduction.Replayed(curve, 0.5, ()), [])
    other = reproduction.judge(whole, reproduction.Replayed(curve, 0.4, ()), [])
    assert (same["verdict"], other["verdict"]) == ("exactly", "not")
    assert "val_accuracy of the kept weights: 0.5 on record, 0.4 now" in reproduction.describe(
        other
    )


def diverge(patch: pytest.MonkeyPatch) -> None:
    real = Space.fit

    def fit(self: Space, hp: Any, model: Any, x: Any, y: Any, **options: Any) -> Any:
        model.optimizer.learning_rate = 1e30
        return real(self, hp, model, x, y, **options)

    patch.setattr(Space, "fit", fit)


@pytest.mark.slow
def test_a_failed_trial_fails_again_for_the_same_reason_or_does_not(
    empty: Path, tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        diverge(patch)
        sweep = swept(copy_store(empty, tmp_path / "mlruns"), {"trials": 1})
        assert sweep.record.trials[0].status == "failed"
        code, result, _ = play(sweep, "digits", "--trial", 0)
        assert code == 0
        assert result["verdict"] == "failed again, for the same reason"
        assert result["failure"]["recorded"] == result["failure"]["replayed"]
        assert result["failure"]["recorded"].startswith("diverged")
        assert "failed again, for the same reason" in reproduction.describe(result)
    code, result, _ = play(sweep, "digits", "--trial", 0)
    assert (code, result["verdict"]) == (1, "not")
    assert result["failure"]["replayed"] == ""
    assert "  failed on record: diverged" in reproduction.describe(result)


def test_a_trial_that_fails_now_is_not_reproduced(
    scored: Sweep, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch)
    code, result, err = play(scored, "digits", "--trial", 0)
    assert (code, result["verdict"]) == (1, "not")
    assert result["failure"]["replayed"].startswith("diverged")
    assert "Traceback" in err
    assert "  failed now: diverged" in reproduction.describe(result)


# What differs between then and now


def test_other_surroundings_are_warned_of_and_replayed_all_the_same(
    changed: Callable[..., Sweep], scored: Sweep, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cnn_search.surroundings.git_state", lambda: {"commit": "abc", "dirty": True}
    )
    attempt = scored.run_of(trial=0)
    tags = {
        "version.keras": "3.0.0",
        "machine.processor": "An abacus",
        "git.commit": "def",
        "git.dirty": "False",
    }
    setting = "UPDATE tags SET value = ? WHERE key = ? AND run_uuid = ?"
    sweep = changed(
        *((setting, (value, key, attempt)) for key, value in tags.items()),
        (setting, ("7", "threads", attempt)),
    )
    code, result, err = play(sweep, "digits", "--trial", 0)
    assert (code, result["verdict"]) == (0, "exactly")
    assert [line.partition(" now")[0] for line in result["differences"]] == [
        f"keras: 3.0.0 then, {reproduction.surroundings()['versions']['keras']}",
        f"processor: An abacus then, {reproduction.surroundings()['machine']['processor']}",
        "commit: def then, abc",
        "threads: 7 then, 1",
        "code: changes that were in no commit,",
    ]
    for line in result["differences"]:
        assert f"warning: {line}" in err.splitlines()


@pytest.mark.usefixtures("untrained")
def test_other_images_are_refused_before_any_training(
    changed: Callable[..., Sweep], scored: Sweep, play: Play
) -> None:
    parent = scored.run_of(kind="sweep")
    sweep = changed(
        (
            "UPDATE params SET value = '210' WHERE key = 'train_limit' AND run_uuid = ?",
            (parent,),
        )
    )
    digest = str(scored.record.header["data"]["digest"])[:12]
    with pytest.raises(DataError, match=f"expected the images that it was .* {digest}") as caught:
        play(sweep, "digits", "--trial", 0)
    assert "--data-dir" in str(caught.value)


@pytest.mark.slow
def test_ones_own_images_may_have_moved(empty: Path, tmp_path: Path, play: Play) -> None:
    part = datasets.load("digits", train_limit=300).train
    then, now = tmp_path / "mine.npz", tmp_path / "moved.npz"
    np.savez(then, images=part.images, labels=part.labels)
    changes = {"trials": 1, "training.epochs": 1}
    sweep = swept(copy_store(empty, tmp_path / "mlruns"), changes, str(then))
    then.rename(now)
    with pytest.raises(DataError, match=r"mine\.npz: expected"):
        play(sweep, "mine", "--trial", 0)
    code, result, _ = play(sweep, "mine", "--trial", 0, "--data-dir", now)
    assert (code, result["verdict"]) == (0, "exactly")


# A user's mistakes


@pytest.mark.usefixtures("untrained")
def test_what_is_no_trial_is_refused_in_one_line(scored: Sweep, play: Play, tmp_path: Path) -> None:
    others = ", ".join(str(number) for number in scored.record.trials)
    mistakes: list[tuple[list[object], str]] = [
        (["digits"], "32 hexadecimal digits, or a sweep's name with --trial K .* 'digits'"),
        (["0" * 32], "expected the id of a run of sqlite:.*; received '0000"),
        ([scored.run_of(kind="sweep")], r"expected the run of a trial; .* \(digits-"),
        ([scored.run_of(kind="final")], r"expected the run of a trial; .* \(final scoring\)"),
        (["digits", "--trial", 9], f"expected --trial to be one of {others}; received 9"),
        (["digits", "--final", 9], "expected --final to be one of 0, 1, 2, 3; received 9"),
        (["cifar10", "--trial", 1], "expected a sweep that .* there is none called 'cifar10'"),
        (["digits-20200101-000000", "--trial", 1], "there is none called 'digits-20200101"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(CnnSearchError, match=message) as caught:
            play(scored, *arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match="expected MLflow's database, mlflow.db; there is none"):
        play(Sweep(tmp_path, scored.record), "digits", "--trial", 1)
    with pytest.raises(click.UsageError, match="expected --trial or --final; received both"):
        play(scored, "digits", "--trial", 1, "--final", 1)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("which", ["trial", "sweep", "epochs", "definition", "parameters"])
def test_what_was_deleted_in_mlflow_is_named(
    changed: Callable[..., Sweep], scored: Sweep, play: Play, which: str
) -> None:
    run, parent = scored.run_of(trial=1), scored.run_of(kind="sweep")
    delete = "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?"
    statements, message = {
        "trial": ([(delete, (run,))], f"was deleted. .*mlflow runs restore --run-id {run}"),
        "sweep": ([(delete, (parent,))], "expected the sweep's own run, .* it was deleted"),
        "epochs": (
            [("DELETE FROM latest_metrics WHERE run_uuid = ?", (run,))],
            "expected an epoch on record",
        ),
        "definition": (
            [("DELETE FROM params WHERE key = 'search_space' AND run_uuid = ?", (parent,))],
            "expected the definition in the parameters .* search_space: Field required",
        ),
        "parameters": (
            [("DELETE FROM params WHERE run_uuid = ?", (run,))],
            "expected its parameters in MLflow",
        ),
    }[which]
    with pytest.raises(TrackingError, match=message):
        play(changed(*statements), run)


# As a person types it


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_help_and_wrong_options_answer_without_the_heavy_libraries() -> None:
    program = (
        "import sys\nfrom cnn_search.replay import main\ntry: main(['--help'])\n"
        "except SystemExit: print(sorted({'keras', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "Train a trial again" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_command_trains_with_the_threads_of_then(tmp_path: Path) -> None:
    mlruns = tmp_path / "mlruns"
    options = "--trials 1 --epochs 2 --train-limit 200 --no-final --threads 2"
    done = python("cnn_search.sweep", "digits", *options.split(), "--mlruns", mlruns)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(mlruns / "sweeps")
    done = python("cnn_search.replay", "digits", "--trial", 0, "--json", "--mlruns", mlruns)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "exactly"
    assert not [line for line in result["differences"] if line.startswith("threads")]
    assert not (mlruns / "sweeps").exists()
    done = python("cnn_search.replay", "digits", "--trial", 5, "--mlruns", mlruns)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: digits-")
