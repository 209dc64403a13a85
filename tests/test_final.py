"""The final scoring: who is trained anew, what is read of the test part and when, who wins."""

import copy
import dataclasses
import io
import json
import math
import shutil

import keras
import mlflow
import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, log_loss

from cnn_search import ablation, answer, datasets, definition, final, progress, search
from cnn_search.datasets import Part
from cnn_search.definition import FinalTable
from cnn_search.errors import LedgerError
from cnn_search.ledger import Record, read_events, read_record, unpack_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
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
SMALL = {"training.epochs": 2, "trials": 3, "space": TINY}
TABLE = FinalTable(top=1, seeds=2)


@pytest.fixture(scope="module", autouse=True)
def _own_store():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", train_limit=200)


def searched(mlruns, dataset, changes=()):
    sweep = definition.read("digits", {**SMALL, **dict(changes)})
    return search.run(sweep, dataset, mlruns)


def events_of(folder, kind=None):
    found = [event for event, _ in read_events(folder / "ledger.jsonl")]
    return [event for event in found if kind in (None, event["kind"])]


@pytest.fixture(scope="module")
def scored(tmp_path_factory, digits):
    """A finished search of three trials, and its final scoring."""
    mlruns = tmp_path_factory.mktemp("scored") / "mlruns"
    folder = searched(mlruns, digits).folder
    return mlruns, final.run(folder, digits, mlruns, TABLE)


def test_baseline_and_best_are_trained_anew_with_the_same_fresh_seeds(scored):
    _, outcome = scored
    record = outcome.record
    best = next(trial for trial in record.ranking() if not trial.baseline)
    names = ["vgg_bn", f"trial {best.number}"]
    retrained = [
        (event["finalist"], event["seed"]) for event in events_of(outcome.folder, "retrain")
    ]
    seeds = [seed for name, seed in retrained if name == "vgg_bn"]
    assert retrained == [(name, seed) for seed in seeds for name in names]
    assert len(set(seeds)) == 2
    assert not set(seeds) & {trial.seed for trial in record.trials.values()}
    assert all(trial.status == "finished" for trial in record.finals.values())
    assert record.scoring_end == "finished"
    assert record.end == "finished"  # the search's own


def test_the_test_part_is_read_after_the_last_training_and_once_for_each_model(scored):
    _, outcome = scored
    kinds = [event["kind"] for event in events_of(outcome.folder)]
    assert kinds.index("test") > max(i for i, kind in enumerate(kinds) if kind == "done")
    read = [(event["final"], event["weights"]) for event in events_of(outcome.folder, "test")]
    assert len(read) == len(set(read))
    books = [n for n, trial in outcome.record.finals.items() if trial.finalist == "vgg_bn"]
    # of the book's model the last weights too
    assert set(read) == {(n, "best") for n in outcome.record.finals} | {(n, "last") for n in books}


def test_what_is_kept_of_a_model_s_predictions_is_what_it_predicts(scored, digits):
    _, outcome = scored
    images, labels = digits.test.images, digits.test.labels
    for trial in outcome.record.finals.values():
        model = keras.models.load_model(trial.folder(outcome.folder) / "model.keras")
        probabilities = model.predict(images, batch_size=512, verbose=0)
        predicted, kept = probabilities.argmax(axis=1), trial.tests["best"]
        assert kept["accuracy"] == np.mean(predicted == labels)
        assert kept["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)
        assert kept["confusion"] == confusion_matrix(labels, predicted).tolist()
        np.testing.assert_array_equal(
            unpack_bits(kept["correct"], len(labels)), predicted == labels
        )
        counted = np.array(kept["calibration"])
        assert counted[:, 0].sum() == len(labels)
        assert counted[:, 1].sum() == pytest.approx(probabilities.max(axis=1).sum(), abs=0.01)
        assert counted[:, 2].sum() == np.sum(predicted == labels)
        with np.load(trial.folder(outcome.folder) / "test_predictions.npz") as shown:
            rows = [
                int(np.flatnonzero((images == image).all(axis=(1, 2, 3)))[0])
                for image in shown["images"]
            ]
            np.testing.assert_allclose(shown["probabilities"], probabilities[rows], atol=1e-6)


def test_scoring_again_returns_what_is_recorded(scored, digits, monkeypatch):
    mlruns, outcome = scored
    before = (outcome.folder / "ledger.jsonl").read_bytes()
    monkeypatch.setattr("cnn_search.engines.train", None)
    monkeypatch.setattr(final, "_predict", None)
    again = final.run(outcome.folder, digits, mlruns, TABLE)
    assert again.already
    assert again.record.scored == outcome.record.scored
    assert (outcome.folder / "ledger.jsonl").read_bytes() == before


def test_progress_counts_a_scoring_that_goes_on_by_its_plan(scored):
    _, outcome = scored
    said = io.StringIO()
    reporter = progress.Reporter(Console(file=said), 0, 0)  # the plan was told to an earlier one
    start = events_of(outcome.folder, "start")[-1]
    reporter(outcome.record, start)
    assert f"final {start['final']} ({start['final'] + 1} of 4): " in said.getvalue()


def test_mlflow_has_the_retrainings_as_grandchildren(scored):
    mlruns, outcome = scored
    assert outcome.undelivered == ""
    client = mlflow.MlflowClient(f"sqlite:///{mlruns.resolve()}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    [parent] = [run for run in runs if run.data.tags.get("cnn_search.kind") == "sweep"]
    [middle] = [run for run in runs if run.data.tags.get("kind") == "final scoring"]
    assert middle.data.tags["mlflow.parentRunId"] == parent.info.run_id
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == middle.info.run_id]
    by_number = {int(run.data.tags["cnn_search.final"]): run for run in below}
    assert set(by_number) == set(outcome.record.finals)
    for number, trial in outcome.record.finals.items():
        run = by_number[number]
        assert run.data.metrics["test_accuracy"] == trial.tests["best"]["accuracy"]
        assert run.data.params["seed"] == str(trial.seed)
        assert run.data.tags["finalist"] == trial.finalist
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"curves.png", "test_predictions.png", "configuration.json"} <= files
        curve = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [m.value for m in curve] == [e["val_accuracy"] for e in trial.curve.values()]
    assert {run.info.status for run in runs} == {"FINISHED"}
    told = answer.answer(outcome.record)
    assert parent.data.tags["answer"] == told["sentence"]
    assert told["sentence"] in parent.data.tags["mlflow.note.content"]
    means = {row["name"]: row["accuracy"]["mean"] for row in told["rows"]}
    assert parent.data.metrics["test_accuracy"] == means[told["winner"]]
    assert parent.data.metrics["baseline_test_accuracy"] == means[told["baseline"]]


def test_more_seeds_keep_those_there_are(tmp_path, digits):
    folder = searched(tmp_path, digits).folder
    first = final.run(folder, digits, tmp_path, TABLE)
    more = final.run(folder, digits, tmp_path, FinalTable(top=1, seeds=3))
    assert not more.already
    assert len(more.record.finals) == 6
    for number, trial in first.record.finals.items():
        assert more.record.finals[number] == trial
    assert len(more.record.plans) == 2
    assert more.record.scored
    assert len(more.record.retrainings("vgg_bn")) == 3


def without_times(folder):
    dropped = ("time", "check", "seconds", "pid", "command", "git", "sweep", "memory_bytes")
    return [
        {k: v for k, v in event.items() if k not in dropped}
        for event in events_of(folder)
        if event["kind"] != "session"
    ]


def test_the_test_part_cannot_reach_the_search(tmp_path, digits):
    true = searched(tmp_path / "true", digits)
    rng = np.random.default_rng(1)
    noise = dataclasses.replace(
        digits,
        test=Part(
            rng.integers(0, 256, digits.test.images.shape, np.uint8),
            rng.permutation(digits.test.labels),
        ),
    )
    false = searched(tmp_path / "false", noise)
    assert without_times(false.folder) == without_times(true.folder)


def test_other_test_images_are_refused(scored, digits):
    mlruns, outcome = scored
    half = dataclasses.replace(
        digits, test=Part(digits.test.images[:100], digits.test.labels[:100])
    )
    with pytest.raises(LedgerError, match="expected the test images that it was scored on before"):
        final.run(outcome.folder, half, mlruns, FinalTable(top=1, seeds=3))


def test_minutes_end_a_scoring_that_goes_on_later(tmp_path, digits):
    folder = searched(tmp_path, digits).folder
    cut = final.run(folder, digits, tmp_path, TABLE, minutes=1e-6)
    assert cut.record.scoring_end == "minutes"
    assert not cut.record.scored
    assert not events_of(folder, "test")
    whole = final.run(folder, digits, tmp_path, TABLE)
    assert whole.record.scored
    assert len(whole.record.plans) == 1


def test_a_sweep_s_minutes_keep_a_share_for_its_scoring(scored):
    _, outcome = scored
    record, table = outcome.record, FinalTable(top=1, seeds=10)
    needed = final.estimate_seconds(record, table)
    epochs = 2 * 10  # of each finalist
    others = [trial for trial in record.ranking() if not trial.baseline]
    mean = [np.mean(list(t.seconds.values())) for t in (record.trials[0], others[0])]
    assert needed == pytest.approx(epochs * sum(mean))
    every = FinalTable(top=1, seeds=10, baselines=["all"])
    assert final.estimate_seconds(record, every) == needed
    two = copy.deepcopy(record)
    two.trials[others[-1].number].baseline = "another"
    both = [s for t in (record.trials[0], others[-1]) for s in t.seconds.values()]
    expected = epochs * (mean[1] + 2 * np.mean(both))
    assert len(others) == 2
    assert final.estimate_seconds(two, every) == pytest.approx(expected)
    plenty = 10 * needed / 60
    assert final.reserve(table, plenty)(record) == needed
    assert final.reserve(table, needed / 60)(record) == needed / 2
    assert final.reserve(table, None)(record) == 0
    spent = record.seconds / 60
    fitting, left = final.fit(record, table, spent + 0.45 * needed / 60)
    assert fitting.seeds == 4
    assert left == pytest.approx(0.45 * needed / 60)
    assert final.fit(record, table, spent)[0].seeds == 2
    assert final.fit(record, table, None) == (table, None)


def test_a_search_without_a_result_cannot_be_scored(tmp_path, digits):
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(LedgerError, match="expected a trial that finished, to train anew"):
        final.run(tmp_path, digits, tmp_path, TABLE)


def test_seeds_that_fail_are_recorded_and_cost_the_win(tmp_path, digits, monkeypatch):
    folder = searched(tmp_path, digits).folder
    record = read_record(folder / "ledger.jsonl")
    best = next(trial for trial in record.ranking() if not trial.baseline)
    from cnn_search import engines

    train, failed = engines.train, []

    def failing(task, setup, dataset, emit, stop):
        if task.values == best.values and not failed:
            failed.append(task.trial)
            emit("start", threads=1, backend="tensorflow")
            emit("failed", reason="diverged", message="loss became nan", traceback="")
        else:
            train(task, setup, dataset, emit, stop)

    monkeypatch.setattr("cnn_search.engines.train", failing)
    outcome = final.run(folder, digits, tmp_path, TABLE)
    assert outcome.record.scored["winner"] == "vgg_bn"
    assert [t.number for t in outcome.record.finals.values() if t.status == "failed"] == failed


ASKED = {"epochs": 1, "parent": None, "source": "oracle", "baseline": "", "oracle": {}}


def made(scores):
    """Return a record whose finalists have these validation scores, by seed."""
    record = Record(header={"direction": "max"})
    finalists = [{"name": name, "values": {"x": name}} for name in scores]
    seeds = max(len(values) for values in scores.values())
    record.apply({"kind": "plan", "time": 0.0, "finalists": finalists, "seeds": seeds})
    number = 0
    for name, values in scores.items():
        for score in values:
            retrain = {"final": number, "finalist": name, "values": {"x": name}, "seed": number}
            record.apply({"kind": "retrain", "time": 0.0, "epochs": 1, **retrain})
            trial = record.finals[number]
            if math.isnan(score):
                trial.status = "failed"
            else:
                trial.status = "finished"
                trial.result = {"score": score, "metrics": {"val_loss": 1 - score}}
                trial.result |= {"parameters": 100 + len(name), "flops": 100 - len(name)}
            number += 1
    return record


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        # the mean, not the best seed; the seed of the median, not the best
        ({"a": [0.9, 0.1, 0.2], "b": [0.5, 0.7, 0.6]}, {"winner": "b", "final": 5}),
        # the lower one of two in the middle
        ({"a": [0.4, 0.1], "b": [0.3, 0.9]}, {"winner": "b", "final": 2}),
        ({"a": [0.9, math.nan], "b": [0.5, 0.5]}, {"winner": "b", "final": 3}),
        ({"a": [0.9, math.nan], "b": [0.5, math.nan]}, {"winner": "a", "final": 0}),
        ({"a": [math.nan], "b": [math.nan]}, None),
    ],
)
def test_the_winner_has_the_highest_mean_validation(scores, winner):
    assert final.choose_winner(made(scores)) == winner


@pytest.mark.parametrize(
    ("table", "winner"),
    [
        ({}, "ccc"),
        ({"within": 0.0}, "ccc"),
        ({"within": 0.05}, "bb"),
        ({"within": 0.2}, "a"),
        ({"within": 0.2, "cost": "flops"}, "ccc"),
    ],
)
def test_the_winner_may_be_a_cheaper_one_near_the_best(table, winner):
    record = made({"a": [0.70, 0.80], "bb": [0.84, 0.86], "ccc": [0.88, 0.88]})
    record.header["definition"] = {"registry": table}
    assert final.choose_winner(record)["winner"] == winner


def test_a_network_that_breaks_the_constraints_does_not_win():
    record = made({"a": [0.70, 0.80], "bb": [0.90, 0.90]})  # 101 and 102 parameters
    record.header["definition"] = {"constraints": {"parameters": "<= 101", "epoch_seconds": "<= 5"}}
    assert final.choose_winner(record)["winner"] == "a"
    record.header["definition"] = {"constraints": {"epoch_seconds": "<= 5"}}
    assert final.choose_winner(record)["winner"] == "bb"
    # only the search has predicted how long an epoch takes
    values = record.finals[3].values
    record.apply({"kind": "ask", "time": 0.0, "trial": 0, "values": values, "seed": 1} | ASKED)
    record.trials[0].result = {"parameters": 102, "flops": 98, "epoch_seconds": 6.0}
    assert final.choose_winner(record)["winner"] == "a"


def test_the_time_of_a_scoring_is_known_if_the_best_trained_no_epoch_of_its_own(scored):
    _, outcome = scored
    record = copy.deepcopy(outcome.record)
    best = next(trial for trial in record.ranking() if not trial.baseline)
    best.seconds = {}  # promoted, and its parent's patience was at its end
    table = FinalTable(top=1, seeds=2)
    assert final.estimate_seconds(record, table) > 0
    assert final.fit(record, table, 60.0)[0] == table


def test_the_record_of_a_scored_sweep_is_plain_json(scored):
    _, outcome = scored
    for event in events_of(outcome.folder):
        json.dumps(event, allow_nan=False)


# The ablation


def test_what_hangs_on_another_hyperparameter_is_one_change_with_it():
    assert ablation.group("flip_alternates") == ablation.group("flip") == "augmentation"
    assert ablation.group("lookahead") == ablation.group("averaging") == "averaging"


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, digits):
    """A scored sweep whose winner has two changes of the book's model, before and after."""
    mlruns = tmp_path_factory.mktemp("ablated") / "mlruns"
    sweep = definition.read("digits", {"training.epochs": 1, "trials": 2})
    mine = {"filters_1": 8, "filters_2": 16, "dropout_1": 0.0}
    folder = search.run(sweep, digits, mlruns, tries=[mine]).folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final, "choose_winner", lambda record: {"winner": "trial 1", "final": 1})
        before = final.run(folder, digits, mlruns, TABLE).record
    return before, ablation.run(folder, digits, mlruns)


def test_an_ablation_goes_from_the_book_to_the_winner_in_the_order_of_gains(ablated):
    _, outcome = ablated
    found, record = outcome.record.ablation, outcome.record
    finalists = {f["name"]: f["values"] for f in record.plans[-1]["finalists"]}
    book, winner = finalists["vgg_bn"], finalists[record.scored["winner"]]
    assert found["path"][-1] == winner
    assert found["changes"] == ["filters", "dropout"]
    assert len(found["path"]) == len(found["order"]) == len(found["alone"])
    assert sorted(found["order"]) == sorted(found["changes"])
    means = [
        np.mean([t.result["score"] for t in record.retrained(found["alone"][change], 2)])
        for change in found["order"]
    ]
    assert means == sorted(means, reverse=True)
    assert found["alone"] == {
        "filters": {**book, "filters_1": 8, "filters_2": 16},
        "dropout": {**book, "dropout_1": 0.0},
    }
    assert found["path"][0] == found["alone"][found["order"][0]]


def test_an_ablation_trains_nothing_twice_and_reads_no_test_image(ablated):
    before, outcome = ablated
    record = outcome.record
    pairs = [(json.dumps(t.values), t.seed) for t in record.finals.values()]
    assert len(pairs) == len(set(pairs))
    assert len(record.finals) == len(before.finals) + 4  # two changes alone; the path ends known
    assert all(record.finals[number] == trial for number, trial in before.finals.items())
    assert all(not t.tests for n, t in record.finals.items() if n not in before.finals)
    assert record.scored == before.scored


def test_an_ablation_that_was_killed_in_its_last_training_goes_on(ablated, tmp_path, digits):
    _, outcome = ablated
    folder = tmp_path / "mlruns/sweeps" / outcome.folder.name
    shutil.copytree(outcome.folder, folder)
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    cut = [i for i, line in enumerate(lines) if b'"kind": "done", "final"' in line][-1]
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
    again = ablation.run(folder, digits, tmp_path / "mlruns")
    told = [{**o.record.ablation, "n": 0, "time": 0} for o in (outcome, again)]
    assert told[0] == told[1]
    assert len(again.record.finals) == len(outcome.record.finals)


def test_the_answer_tells_the_steps_of_an_ablation(ablated):
    _, outcome = ablated
    steps = answer.answer(outcome.record)["ablation"]
    assert [step["change"] for step in steps] == ["", *outcome.record.ablation["order"]]
    rows = {row["finalist"]: row for row in answer.answer(outcome.record)["rows"] if row["kept"]}
    winner = rows[outcome.record.scored["winner"]]
    assert steps[-1]["path"]["mean"] == pytest.approx(winner["validation"]["mean"])
    assert steps[0]["path"]["mean"] == pytest.approx(rows["vgg_bn"]["validation"]["mean"])


def test_what_was_not_scored_cannot_be_taken_apart(tmp_path, digits):
    folder = searched(tmp_path, digits, {"trials": 1, "training.epochs": 1}).folder
    with pytest.raises(LedgerError, match="expected a sweep that was scored"):
        ablation.run(folder, digits, tmp_path)
