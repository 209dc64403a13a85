"""The loop: one sweep in this process, its budgets, its order, and its end."""

import dataclasses
import errno
import io
import os
import threading
import time
import unittest.mock

import mlflow
import pytest
from driver import NoTraining
from rich.console import Console

from cnn_search import datasets, definition, search
from cnn_search.errors import DefinitionError, LedgerError
from cnn_search.ledger import read_events, read_record
from cnn_search.network import BlockConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.progress import Reporter
from cnn_search.speed import Measured
from cnn_search.training import Configuration
from search_spaces.digits import Space as Digits
from search_spaces.images import Space

# quick to build and to train: one block of eight filters
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
# a baseline is no point of this narrowed space, and is trained all the same
SMALL = {"training.epochs": 2, "trials": 3, "space": TINY}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", train_limit=200)


def run(tmp_path, dataset, changes=(), **options):
    sweep = definition.read("digits", {**SMALL, **dict(changes)})
    outcome = search.run(sweep, dataset, tmp_path / "mlruns", **options)
    assert outcome.undelivered == ""
    return outcome


def kinds(outcome):
    return [event["kind"] for event, _ in read_events(outcome.folder / "ledger.jsonl")]


def asks(outcome):
    events = read_events(outcome.folder / "ledger.jsonl")
    return [event for event, _ in events if event["kind"] == "ask"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder, digits)


def test_trial_0_is_the_baseline_and_the_rest_the_oracles(finished):
    _, outcome = finished
    assert [(ask["source"], ask["baseline"]) for ask in asks(outcome)] == [
        ("baseline", "vgg_bn"),
        ("oracle", ""),
        ("oracle", ""),
    ]
    assert outcome.record.end == "finished"
    assert outcome.undelivered == ""
    assert kinds(outcome)[:3] == ["sweep", "session", "ask"]
    assert kinds(outcome)[-2:] == ["champion", "end"]
    assert outcome.record.champion == outcome.record.ranking()[0].number


def test_only_the_best_keep_their_weights_and_nobody_a_checkpoint(tmp_path, digits):
    outcome = run(tmp_path, digits, {"keep_models": 1})
    models = list(outcome.folder.glob("trials/*/model.keras"))
    assert [path.parent.name for path in models] == [f"{outcome.record.champion:04d}"]
    assert list(outcome.folder.glob("trials/*/checkpoint.npz")) == []


def test_a_finished_sweep_answers_without_training_and_more_trials_extend_it(
    tmp_path, digits, monkeypatch
):
    first = run(tmp_path, digits)
    before = (first.folder / "ledger.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("cnn_search.engines.train", None)
        again = run(tmp_path, digits)
    assert again.already
    assert (first.folder / "ledger.jsonl").read_bytes() == before
    longer = run(tmp_path, digits, {"trials": 4})
    assert longer.folder == first.folder
    assert len(longer.record.trials) == 4
    whole = run(tmp_path / "at once", digits, {"trials": 4})
    assert [ask["values"] for ask in asks(longer)] == [ask["values"] for ask in asks(whole)]


def test_another_definition_needs_new_and_the_difference_is_named(tmp_path, digits):
    first = run(tmp_path, digits, {"training.epochs": 1, "trials": 1})
    with pytest.raises(LedgerError, match=r"received seed: 1 -> 2; training\.epochs: 1 -> 2\. "):
        run(tmp_path, digits, {"seed": 2})
    another = run(tmp_path, digits, {"seed": 2, "training.epochs": 1, "trials": 1}, new=True)
    assert another.folder != first.folder


def test_other_images_are_refused(finished):
    folder, _ = finished
    with pytest.raises(LedgerError, match="expected the images it was started with"):
        run(folder, datasets.load("digits", train_limit=210))


def test_a_second_driver_is_refused(finished, digits):
    folder, outcome = finished
    with (
        search.hold(outcome.folder),
        pytest.raises(LedgerError, match="expected to be its only driver"),
    ):
        run(folder, digits, {"trials": 9})


def slow_by_parameters(definition, dataset):
    """Stands for measuring: a step takes a millisecond, and a second for a million parameters."""
    works = [(1.0, n % 3 + 1.0, 1.0 * n**2, 1.0 * (n % 2), 0.01 * n) for n in range(1, 9)]
    steps = [0.001 + 10 * work[4] for work in works]
    return [Measured("made up", 1, 1, w, s, s, 0.0) for w, s in zip(works, steps, strict=True)]


def test_networks_whose_epochs_would_take_too_long_are_refused(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(search, "probe", slow_by_parameters)
    steps = (len(digits.train.labels) + len(digits.validation.labels) / 3) / 64
    limit = steps * (0.001 + 2_000 / 1e6)  # as long as 2,000 parameters take
    changes = {"constraints": {"epoch_seconds": f"<= {limit}"}, "trials": 4, "training.epochs": 1}
    outcome = run(tmp_path, digits, changes)
    trials = outcome.record.trials.values()
    assert sum(trial.status != "refused" for trial in trials) == 4
    for trial in trials:
        if trial.status == "finished":
            seconds = steps * (0.001 + trial.result["parameters"] / 1e6)
            assert trial.costs["epoch_seconds"] == pytest.approx(seconds, rel=1e-6)
            assert trial.baseline or trial.result["parameters"] <= 2_000
        else:
            assert "epoch_seconds, allowed: <= " in trial.failure["message"]
    assert {trial.status for trial in trials} == {"finished", "refused"}
    # the same weights when it goes on, though nothing is measured again
    monkeypatch.setattr(search, "probe", None)
    more = run(tmp_path, digits, {**changes, "trials": 5})
    assert len(more.record.counted()) == 5  # those that were refused do not count
    assert kinds(more).count("speed") == 1
    assert more.record.speed["error"] == pytest.approx(0, abs=1e-6)


# Recipes: what a space recommends


@pytest.fixture
def recommended(monkeypatch):
    recipes = {
        name: Configuration(
            NetworkConfig((BlockConfig(filters, pooling="max"),)),
            training=TrainingConfig("sgd", 0.1, batch_size=64),
        )
        for name, filters in {"small": 8, "large": 16}.items()
    }
    monkeypatch.setattr("search_spaces.digits.Space.recipes", recipes)


def test_what_a_space_recommends_is_tried_after_the_baseline(tmp_path, digits, recommended):
    outcome = run(tmp_path, digits, {"trials": 2})
    assert [(a["source"], a["recipe"]) for a in asks(outcome)] == [
        ("baseline", ""),
        ("recipe", "small"),
    ]
    more = run(tmp_path, digits, {"trials": 4})
    assert [(a["source"], a["recipe"]) for a in asks(more)[2:]] == [
        ("recipe", "large"),
        ("oracle", ""),
    ]
    assert [t.recipe for t in more.record.trials.values()] == ["", "small", "large", ""]
    # the oracle knows them, as points of its space
    assert len({str(ask["values"]) for ask in asks(more)}) == 4
    again = run(tmp_path, digits, {"trials": 5, "recipes": False})
    assert asks(again)[4]["source"] == "oracle"


def test_a_recipe_is_not_pruned(tmp_path, digits, recommended):
    # its schedule makes it slow at first; asha ends whoever is second of two
    pruner = {"pruner.kind": "asha", "pruner.first_epoch": 1, "pruner.factor": 2}
    outcome = run(tmp_path, digits, {"trials": 6, **pruner})
    statuses = [trial.status for trial in outcome.record.trials.values()]
    assert statuses[:3] == ["finished"] * 3
    assert "pruned" in statuses[3:]


def test_a_recipe_that_the_space_is_narrowed_away_from_is_left_out(tmp_path, digits, recommended):
    narrowed = {"trials": 3, "space": TINY | {"filters_1": 16}}
    lines = []
    outcome = run(tmp_path, digits, narrowed, say=lines.append)
    assert [a["recipe"] for a in asks(outcome)] == ["", "large", ""]
    assert "recipe small: left out, as the space is without its filters_1" in lines
    without = run(tmp_path / "without", digits, {"trials": 2, "recipes": False})
    assert [a["source"] for a in asks(without)] == ["baseline", "oracle"]


def test_a_recipe_is_refused_as_any_other_where_it_breaks_the_constraints(
    tmp_path, digits, recommended
):
    changes = {"constraints": {"parameters": "<= 2_000"}, "trials": 3}
    trials = run(tmp_path, digits, changes).record.trials
    assert [trials[n].status for n in range(3)] == ["finished", "finished", "refused"]


def test_a_configuration_of_ones_own_is_the_next_trial_also_of_a_finished_sweep(tmp_path, digits):
    run(tmp_path, digits, {"trials": 2})
    mine = {"depth": 1, "filters_1": 16, "optimiser": "sgd"}
    outcome = run(tmp_path, digits, {"trials": 2}, tries=[mine])
    ask = asks(outcome)[2]
    assert (ask["source"], ask["values"]["filters_1"], ask["values"]["momentum"]) == (
        "try",
        16,
        0.9,
    )
    assert outcome.record.trials[2].status == "finished"


def test_all_baselines_go_first_if_all_are_asked_for(tmp_path, digits):
    with pytest.raises(DefinitionError, match="expected some of vgg_bn; received 'one_conv'"):
        run(tmp_path, digits, {"baselines": ["one_conv"]})
    outcome = run(tmp_path, digits, {"baselines": ["all"], "trials": 1})
    assert [ask["baseline"] for ask in asks(outcome)] == ["vgg_bn"]


def test_hyperband_trains_what_its_brackets_say_and_goes_on_from_the_parent(tmp_path, digits):
    outcome = run(tmp_path, digits, {"oracle.kind": "hyperband", "training.epochs": 3})
    record = outcome.record
    assert record.end == "finished"
    promoted = [trial for trial in record.trials.values() if trial.parent is not None]
    assert promoted
    for trial in promoted:
        parent = record.trials[trial.parent]
        assert min(trial.curve) == parent.epochs + 1
        assert max(trial.curve) == trial.epochs
        assert (trial.values, trial.seed) == (parent.values, parent.seed)
    assert all(trial.epochs == 3 for trial in record.ranking())
    assert list(outcome.folder.glob("trials/*/checkpoint.npz")) == []


def test_grid_asks_for_the_baseline_itself(tmp_path, digits):
    changes = {"oracle.kind": "grid", "oracle.over": ["filters_1"], "space": {}, "trials": 2}
    outcome = run(tmp_path, digits, {**changes, "training.epochs": 1})
    assert [(ask["source"], ask["baseline"]) for ask in asks(outcome)] == [
        ("oracle", "vgg_bn"),
        ("oracle", ""),
    ]


class LosesTheLast(NoTraining):
    """Two slots; the worker of trial 0 is lost when nothing new is left to ask."""

    def submit(self, task):
        if (task.trial, task.attempt) == (0, 1):
            attempt = {"trial": 0, "attempt": 1}
            self.events.put(("start", {**attempt, "backend": "none", "threads": 1}))
            return
        super().submit(task)
        if task.trial == 1:
            self.events.put(("died", {"trial": 0, "attempt": 1, "reason": "lost", "message": ""}))


def test_a_trial_that_is_lost_after_the_last_ask_is_tried_again(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: LosesTheLast(2))
    record = run(tmp_path, digits, {"trials": 2}).record
    assert [trial.status for trial in record.trials.values()] == ["finished"] * 2
    assert (record.trials[0].attempt, record.end) == (2, "finished")


PRUNED = {
    **{"oracle.kind": "tpe", "pruner.kind": "asha", "pruner.factor": 2, "pruner.first_epoch": 1},
    **{"training.epochs": 4, "trials": 9},
}


def told(outcome):
    """What a ledger tells of trials, times aside; what was cut short is told once."""
    kept = []
    for event, _ in read_events(outcome.folder / "ledger.jsonl"):
        if event["kind"] in ("ask", "epoch", "done", "pruned"):
            without = ("n", "time", "seconds", "attempt", "memory_bytes", "check")
            kept.append({k: v for k, v in event.items() if k not in without})
    return kept


def test_pruned_trials_end_early_and_are_not_ranked(tmp_path, digits):
    outcome = run(tmp_path, digits, PRUNED)
    trials = outcome.record.trials
    assert trials[0].status == "finished"  # the baseline is never pruned
    pruned = [trial for trial in trials.values() if trial.status == "pruned"]
    assert pruned
    assert all(max(trial.curve) in (1, 2) for trial in pruned)
    assert {t.number for t in outcome.record.ranking()} == set(trials) - {t.number for t in pruned}
    assert list(outcome.folder.glob("trials/*/checkpoint.npz")) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.outcome LIKE 'pruned%'")
    told = {(run.data.tags["trial"], run.data.tags["outcome"], run.info.status) for run in runs}
    expected = {(str(t.number), f"pruned after {max(t.curve)}", "KILLED") for t in pruned}
    assert told == expected


@pytest.mark.parametrize("kind", ["tpe"] + ["random"] * ("CNN_SEARCH_ALL_FAULTS" in os.environ))
def test_a_kill_between_an_epoch_and_the_word_to_end_changes_nothing(tmp_path, digits, kind):
    changes = {**PRUNED, "oracle.kind": kind}
    whole = run(tmp_path / "whole", digits, changes)
    again = run(tmp_path / "again", digits, {**changes, "trials": 9})
    ledger = again.folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if b'"kind": "pruned"' in line)
    ledger.write_bytes(b"".join(lines[:cut]))
    assert told(run(tmp_path / "again", digits, changes)) == told(whole)


def test_minutes_end_after_the_running_epoch_and_more_minutes_go_on(tmp_path, digits):
    changes = {"training.epochs": 400, "trials": 1, "space": {}}
    outcome = run(tmp_path, digits, {**changes, "minutes": 0.1})
    assert outcome.record.end == "minutes"
    trial = outcome.record.trials[0]
    assert trial.status == "stopped"
    assert 0 < len(trial.curve) < 400
    assert (outcome.folder / "trials/0000/checkpoint.npz").exists()
    same = run(tmp_path, digits, {**changes, "minutes": 0.1})
    assert same.already
    more = run(tmp_path, digits, {**changes, "minutes": 0.25})
    epochs = sorted(more.record.trials[0].curve)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > len(trial.curve)
    assert more.record.trials[0].attempt == 2


def test_epochs_in_all_end_the_sweep_and_more_go_on(tmp_path, digits):
    outcome = run(tmp_path, digits, {"epochs_total": 3})
    assert outcome.record.end == "epochs"
    assert 3 <= outcome.record.epochs <= 4  # an epoch here is over before the word to stop comes
    assert run(tmp_path, digits, {"epochs_total": 3}).already
    more = run(tmp_path, digits, {"epochs_total": 99})
    assert (more.record.end, more.record.epochs) == ("finished", 6)


def test_a_folder_that_is_larger_than_its_quota_ends_the_sweep(tmp_path, digits):
    outcome = run(tmp_path, digits, {"disk_megabytes": 0.01})
    assert outcome.record.end == "quota"
    assert [t.status for t in outcome.record.trials.values()] == ["finished"]
    assert run(tmp_path, digits, {"disk_megabytes": 0.01}).already
    assert run(tmp_path, digits, {"disk_megabytes": 100.0}).record.end == "finished"


def test_a_quota_does_not_count_the_copy_of_the_images(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))

    def copy(record, event):
        folder = next((tmp_path / "mlruns/sweeps").iterdir()) / "images"
        folder.mkdir(exist_ok=True)
        (folder / "train_images.npy").write_bytes(bytes(2_000_000))

    outcome = run(tmp_path, digits, {"disk_megabytes": 1.0}, on_event=copy)
    assert outcome.record.end == "finished"


@pytest.mark.parametrize("limit", [{"epochs_total": 3}, {"minutes": 1e5}, {"disk_megabytes": 0.01}])
def test_a_sweep_that_is_killed_at_its_limit_chooses_its_champion_later(
    tmp_path, digits, monkeypatch, limit
):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    whole = run(tmp_path, digits, {"training.epochs": 3, "trials": 3, **limit})
    ledger = whole.folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if b'"kind": "champion"' in line)
    ledger.write_bytes(b"".join(lines[:cut]))
    limit = {"minutes": 1e-9} if "minutes" in limit else limit
    again = run(tmp_path, digits, {"training.epochs": 3, "trials": 3, **limit})
    names = {"epochs_total": "epochs", "minutes": "minutes", "disk_megabytes": "quota"}
    assert again.record.end == names[next(iter(limit))]
    assert again.record.champion == 0
    assert run(tmp_path, digits, {"training.epochs": 3, "trials": 3, **limit}).already


def test_a_full_disk_ends_the_sweep_and_fails_no_trial(tmp_path, digits, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("cnn_search.training.describe_model", unittest.mock.Mock(side_effect=full))
        outcome = run(tmp_path, digits)
    assert (outcome.ending, outcome.record.end) == ("disk", "disk")
    assert [t.status for t in outcome.record.trials.values()] == ["stopped"]
    again = run(tmp_path, digits)
    assert [t.status for t in again.record.trials.values()] == ["finished"] * 3


def test_states_that_hyperband_cannot_go_on_from_are_deleted_at_once(tmp_path, digits):
    changes = {"oracle.kind": "hyperband", "training.epochs": 4, "oracle.factor": 2}
    kept = []

    def count(record, event):
        if event["kind"] == "ask":
            folders = (record.header["sweep"], "trials/*/checkpoint.npz")
            kept.append(len(list((tmp_path / "mlruns/sweeps" / folders[0]).glob(folders[1]))))

    outcome = run(tmp_path, digits, changes, on_event=count)
    plan = outcome.record.trials[1].oracle
    size = sum(
        t.oracle.get("tuner/bracket") == plan["tuner/bracket"] and not t.parent
        for t in outcome.record.trials.values()
    )
    assert 0 < max(kept) <= size
    assert kept[-1] == 0  # the last bracket promotes nothing


def test_failures_are_kept_with_their_reason_and_the_search_goes_on(tmp_path, digits, monkeypatch):
    real = Space.fit

    def fit(self, hp, model, x, y, **options):
        if hp.values["depth"] == 1:  # not the baseline
            model.optimizer.learning_rate = 1e30
        return real(self, hp, model, x, y, **options)

    monkeypatch.setattr(Space, "fit", fit)
    constant = {**TINY, "schedule": "constant"}
    outcome = run(tmp_path, digits, {"space": constant, "oracle.kind": "random"})
    assert [trial.status for trial in outcome.record.trials.values()] == [
        "finished",
        "failed",
        "failed",
    ]
    failure = outcome.record.trials[1].failure
    assert failure["reason"] == "diverged"
    assert "became" in failure["message"]
    assert outcome.record.champion == 0


def test_a_sweep_in_which_everything_fails_ends_early_and_says_so(tmp_path, digits, monkeypatch):
    def build(self, hp):
        raise RuntimeError("no such layer\nmore of it")

    monkeypatch.setattr("search_spaces.images.Space.build", build)
    outcome = run(tmp_path, digits, {"trials": 30})
    assert outcome.record.end == "failed"
    assert len(outcome.record.trials) == search.GIVE_UP_AFTER
    failure = outcome.record.trials[0].failure
    assert failure["reason"] == "build"
    assert failure["message"] == "RuntimeError: no such layer"
    assert "test_search.py" in failure["traceback"]


def test_a_signal_ends_the_sweep_cleanly_and_the_same_call_goes_on(tmp_path, digits):
    changes = {"trials": 1, "training.epochs": 15}
    seen = threading.Event()

    def on_event(record, event):
        if event["kind"] == "epoch" and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), 2)

    outcome = run(tmp_path, digits, changes, on_event=on_event)
    assert outcome.record.end == "interrupted"
    assert outcome.record.trials[0].status == "stopped"
    assert outcome.record.champion is None
    again = run(tmp_path, digits, changes)
    assert again.record.end == "finished"
    assert again.record.trials[0].attempt == 2
    assert read_record(again.folder / "ledger.jsonl") == again.record


def test_a_pause_between_two_runs_does_not_use_up_the_minutes(tmp_path, digits, monkeypatch):
    """`sweep --minutes 60`, Ctrl-C after ten, the same command two hours later: it goes on."""
    changes = {"trials": 1, "training.epochs": 15, "minutes": 30}
    interrupted = []

    def on_event(record, event):
        if event["kind"] == "epoch" and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), 2)

    first = run(tmp_path, digits, changes, on_event=on_event)
    assert first.record.end == "interrupted"
    real = time.time
    monkeypatch.setattr("cnn_search.ledger.time.time", lambda: real() + 7200)
    again = run(tmp_path, digits, changes)
    assert not again.already
    assert again.record.end == "finished"


def test_the_same_command_does_not_try_ones_own_configuration_twice(tmp_path, digits):
    mine = {"depth": 1, "filters_1": 16}
    changes = {"trials": 2, "training.epochs": 1}
    first = run(tmp_path, digits, changes, tries=[mine])
    assert [ask["source"] for ask in asks(first)] == ["baseline", "try"]
    again = run(tmp_path, digits, changes, tries=[mine])
    assert again.already
    assert len(again.record.trials) == 2


def test_networks_that_break_the_constraints_are_refused_and_do_not_count(tmp_path, digits):
    changes = {"constraints": {"parameters": "<= 2_000"}, "oracle.kind": "tpe", "trials": 4}
    screen = io.StringIO()
    outcome = run(tmp_path, digits, changes, on_event=Reporter(Console(file=screen), 4, 4))
    trials = outcome.record.trials.values()
    refused = [trial for trial in trials if trial.status == "refused"]
    assert refused
    assert "(4 of 4)" in screen.getvalue()
    assert "(5 of 4)" not in screen.getvalue()
    assert all(not trial.curve for trial in refused)
    assert all("parameters, allowed: <= 2_000" in t.failure["message"] for t in refused)
    assert sum(trial.status == "finished" for trial in trials) == 4
    ranked = outcome.record.ranking()
    assert all(trial.result["parameters"] <= 2000 for trial in ranked)
    assert 0 not in [
        trial.number for trial in ranked
    ]  # the book's model is too large, and no winner
    assert run(tmp_path, digits, changes).already


def test_constraints_that_nothing_meets_end_the_search(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.search.MOST_REFUSED", 4)
    said = []
    changes = {"constraints": {"flops": "<= 1"}, "oracle.kind": "random"}
    outcome = run(tmp_path, digits, changes, say=said.append)
    assert outcome.record.end == "exhausted"
    assert [t.status for t in outcome.record.trials.values()] == ["finished"] + ["refused"] * 4
    assert any("too tight?" in line for line in said)


def test_several_baselines_go_first_and_once_in_a_sweep_that_was_killed(
    tmp_path, digits, monkeypatch
):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    book = Digits.baselines["vgg_bn"]
    other = dataclasses.replace(book.configuration, training=TrainingConfig("rmsprop"))
    second = dataclasses.replace(book, configuration=other)
    monkeypatch.setattr(Digits, "baselines", {**Digits.baselines, "second": second})
    changes = {"baselines": ["all"], "trials": 4, "space": {}, "recipes": False}
    whole = run(tmp_path, digits, changes)
    sources = [(ask["source"], ask["baseline"]) for ask in asks(whole)]
    assert sources == [("baseline", "vgg_bn"), ("baseline", "second")] + [("oracle", "")] * 2
    ledger = whole.folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    for asked in (1, 2):  # killed when the first, or both, had been asked for
        cut = [i for i, line in enumerate(lines) if b'"kind": "ask"' in line][asked]
        ledger.write_bytes(b"".join(lines[:cut]))
        assert told(run(tmp_path, digits, changes)) == told(whole)


class Ending(NoTraining):
    """Ends each trial in one way, but a baseline that may not be refused; one late."""

    def __init__(self, kind, **fields):
        super().__init__(2)
        self.kind, self.fields, self.late, self.calls = kind, fields, [], 0

    def submit(self, task):
        about = {"trial": task.trial, "attempt": task.attempt}
        if task.trial == 0 and self.kind == "refused":
            super().submit(task)
            return
        self.events.put(("start", {**about, "backend": "none", "threads": 1}))
        ended = (self.kind, {**about, **self.fields})
        if task.trial == 1:
            self.late.append(ended)
        else:
            self.events.put(ended)

    def slots(self):
        self.calls += 1
        if self.calls % 100 == 0 and self.late:
            self.events.put(self.late.pop())
        return super().slots()


@pytest.mark.parametrize(
    ("kind", "fields", "end"),
    [
        ("refused", {"costs": {"flops": 2}, "message": "2 flops"}, "exhausted"),
        ("failed", {"reason": "error", "message": "no", "traceback": ""}, "failed"),
    ],
)
def test_a_hopeless_search_ends_with_several_workers_too(
    tmp_path, digits, monkeypatch, kind, fields, end
):
    monkeypatch.setattr("cnn_search.search.MOST_REFUSED", 4)
    monkeypatch.setattr("cnn_search.driver.TICK_SECONDS", 0.01)
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: Ending(kind, **fields))
    changes = {"constraints": {"flops": "<= 1"}, "oracle.kind": "random", "trials": 30}
    outcome = run(tmp_path, digits, changes)
    assert outcome.record.end == end
    ended = [trial.status for trial in outcome.record.trials.values()]
    assert set(ended[kind == "refused" :]) == {kind}
    assert len(ended) <= 1 + max(4, search.GIVE_UP_AFTER)


def test_the_oracle_learns_that_ones_own_network_breaks_the_constraints(
    tmp_path, digits, monkeypatch
):
    told, tell = [], search.Oracle.tell

    def heard(self, number, values, score, **more):
        told.append((number, round(more["violation"], 2)))
        tell(self, number, values, score, **more)

    monkeypatch.setattr(search.Oracle, "tell", heard)
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    changes = {"constraints": {"flops": ">= 2"}, "oracle.kind": "tpe", "trials": 2}
    run(tmp_path, digits, changes, tries=[{"depth": 1, "filters_1": 16}])
    assert told == [(0, 0.69), (1, 0.69)]


def test_a_flat_search_ends_and_a_larger_patience_goes_on(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    changes = {"stop": {"patience": 3}, "trials": 20}  # every score is the same
    outcome = run(tmp_path, digits, changes)
    assert (outcome.record.end, len(outcome.record.trials)) == ("flat", 4)
    assert run(tmp_path, digits, changes).already
    more = run(tmp_path, digits, {**changes, "stop": {"patience": 6}})
    assert (more.record.end, len(more.record.trials)) == ("flat", 7)


class Holding(NoTraining):
    """Ends a trial only when it is told to stop, or has been asked for slots for a while."""

    def __init__(self, slots, trial, **end):
        super().__init__(slots)
        self.trial, self.end, self.told, self.held, self.calls = trial, end, [], [], 0

    def submit(self, task):
        super().submit(task)
        if task.trial == self.trial:
            kept = []
            while not self.events.empty():
                event = self.events.get()
                (self.held if event[1]["trial"] == task.trial else kept).append(event)
            kind, fields = self.held.pop()
            self.held.append((self.end.pop("kind", kind), {**fields, **self.end}))
            for event in [*kept, self.held.pop(0)]:  # it starts
                self.events.put(event)

    def stop(self, when, trial=None):
        self.told.append((when, trial))
        self.held = []
        self.events.put(("stopped", {"trial": self.trial, "attempt": 1}))

    def slots(self):
        self.calls += 1
        if self.calls % 100 == 0:
            while self.held:
                self.events.put(self.held.pop(0))
        return super().slots()


def test_a_search_is_not_flat_while_a_trial_that_runs_may_be_better(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.TICK_SECONDS", 0.01)
    monkeypatch.setattr(
        "cnn_search.driver.make_engine", lambda *arguments: Holding(2, 3, score=0.9)
    )
    outcome = run(tmp_path, digits, {"stop": {"patience": 3}, "trials": 20})
    # 1, 2 and 4 were no better than 0; then 3 was, and after it three more are tried
    assert outcome.record.end == "flat"
    assert outcome.record.ranking()[0].number == 3
    assert len(outcome.record.trials) >= 7


def test_a_trial_that_is_refused_last_is_replaced(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.TICK_SECONDS", 0.01)
    late = Holding(4, 2, kind="refused", costs={}, message="too large")
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: late)
    outcome = run(tmp_path, digits, {"trials": 3})
    statuses = [trial.status for trial in outcome.record.trials.values()]
    assert statuses == ["finished", "finished", "refused", "finished"]
    assert outcome.record.end == "finished"


def test_a_limit_that_is_reached_while_the_oracle_thinks_is_told_to_those_that_run(
    tmp_path, digits, monkeypatch
):
    engine = Holding(3, 0)
    monkeypatch.setattr("cnn_search.driver.TICK_SECONDS", 0.01)
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: engine)
    late = []
    monkeypatch.setattr(search._Search, "over", lambda self: "minutes" if late else "")
    ask = search._Search.next

    def think(self):
        trial = ask(self)
        if trial.number == 1:
            late.append(trial)
        return trial

    monkeypatch.setattr(search._Search, "next", think)
    outcome = run(tmp_path, digits, {"trials": 20})
    assert outcome.record.end == "minutes"
    assert engine.told == [("epoch", None)]
    assert [t.status for t in outcome.record.trials.values()] == ["stopped", "finished"]


def test_accuracy_and_a_cost_are_searched_for_together(tmp_path, digits):
    several = ["val_accuracy", "parameters"]
    changes = {"objectives": several, "oracle.kind": "tpe", "trials": 4, "training.epochs": 1}
    outcome = run(tmp_path, digits, changes)
    assert [t.status for t in outcome.record.trials.values()] == ["finished"] * 4
    again = run(tmp_path, digits, {**changes, "trials": 5})
    assert len(again.record.trials) == 5


def test_a_cheaper_network_near_the_best_is_registered_if_asked_for(tmp_path, digits):
    changes = {"registry.within": 1.0, "registry.cost": "flops", "trials": 4, "keep_models": 1}
    outcome = run(tmp_path, digits, {**changes, "training.epochs": 1, "seed": 5})
    finished = outcome.record.ranking()
    cheapest = min(finished, key=lambda trial: trial.costs["flops"])
    assert cheapest is not finished[0]
    assert outcome.record.champion == cheapest.number
    kept = {int(path.parent.name) for path in outcome.folder.glob("trials/*/model.keras")}
    assert kept == {finished[0].number, cheapest.number}


def test_a_warm_start_trains_the_best_first_and_knows_the_rest(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    first = run(tmp_path, digits, {"trials": 8, "oracle.kind": "tpe"}).record
    best = [trial.values for trial in first.ranking() if trial.number][:3]
    changes = {"trials": 6, "oracle.kind": "tpe", "seed": 2}
    outcome = run(tmp_path, digits, changes, new=True, warm_start="digits")
    trials = outcome.record.trials
    assert [trials[n].source for n in range(6)] == ["baseline", *["earlier"] * 3, *["oracle"] * 2]
    assert [trials[n].values for n in (1, 2, 3)] == best
    assert len(outcome.record.earlier["seen"]) == 4
    more = run(tmp_path, digits, {**changes, "trials": 8}, warm_start="digits")
    assert len(more.record.trials) == 8


def test_a_warm_start_from_all_trains_nothing_twice(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    changes = {"trials": 5, "oracle.kind": "tpe"}
    for seed in (1, 2, 3):
        begun = {"new": seed > 1, "warm_start": "best" if seed > 1 else ""}
        outcome = run(tmp_path, digits, {**changes, "seed": seed}, **begun)
    best = next(trial.values for trial in outcome.record.ranking() if trial.number)
    begun = {"new": True, "warm_start": "best", "tries": [best]}
    outcome = run(tmp_path, digits, {**changes, "seed": 4}, **begun)
    values = [trial.values for trial in outcome.record.trials.values()]
    assert best in values
    assert all(one not in values[:n] for n, one in enumerate(values))
    # a sweep that was killed before its first line
    empty = outcome.folder.with_name("digits-29991231-000000")
    empty.mkdir()
    (empty / "ledger.jsonl").touch()
    run(tmp_path, digits, {**changes, "seed": 5}, new=True, warm_start="best")
    with pytest.raises(DefinitionError, match="expected a sweep in"):
        run(tmp_path, digits, changes, new=True, warm_start=empty.name)


def test_a_warm_start_from_other_epochs_takes_configurations_and_no_scores(
    tmp_path, digits, monkeypatch
):
    monkeypatch.setattr("cnn_search.driver.make_engine", lambda *arguments: NoTraining(1))
    run(tmp_path, digits, {"trials": 8})
    said = []
    changes = {"training.epochs": 3, "trials": 5}
    outcome = run(tmp_path, digits, changes, new=True, warm_start="digits", say=said.append)
    assert outcome.record.earlier["seen"] == []
    assert outcome.record.trials[1].source == "earlier"
    assert any("other [training]: its scores do not count here" in line for line in said)
    for name in ("nothing", "best"):
        with pytest.raises(DefinitionError, match=f"--warm-start {name}: expected a sweep in"):
            run(tmp_path, digits, {"training.epochs": 4}, new=True, warm_start=name)
    run(tmp_path / "without", digits, {"trials": 2})
    with pytest.raises(DefinitionError, match="has begun without"):
        run(tmp_path / "without", digits, {"trials": 3}, warm_start="digits")
