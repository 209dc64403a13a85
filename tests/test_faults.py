"""A sweep goes on whatever its trials do to their processes, and the record says what happened."""

import ctypes
import os
import signal
import time

import mlflow
import numpy as np
import pytest

from cnn_search import cluster, datasets, definition, search
from cnn_search.ledger import read_events
from search_spaces import digits as digits_space

pytestmark = pytest.mark.slow

FATES = {16: "killed", 32: "crashes", 64: "fine", 128: "endless", 256: "hungry"}
SMALL = {
    "search_space": f"{__name__}:Fate",
    "training.epochs": 2,
    "space": {"depth": 1, "convolutions": 1, "filters_1": [8, 16], "batch_size": 64},
}


class Fate(digits_space.Space):
    """The digits space, where the batch size decides what a trial does to its process."""

    batch_size = tuple(FATES)

    def build(self, hp):
        if hp.values["filters_1"] == 128:
            raise ValueError("no such network")
        return super().build(hp)

    def fit(self, hp, model, *args, **options):
        fate = FATES[hp.values["batch_size"]]
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "crashes":
            ctypes.string_at(0)
        while fate == "endless":
            time.sleep(0.1)
        eaten = []
        while fate == "hungry":
            eaten.append(np.ones(4_000_000))
            time.sleep(0.01)
        return super().fit(hp, model, *args, **options)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", train_limit=200)


def run(folder, dataset, changes, **options):
    sweep = definition.read("digits", {**SMALL, **changes})
    return search.run(sweep, dataset, folder, **options)


def events(outcome, *kinds):
    found = [event for event, _ in read_events(outcome.folder / "ledger.jsonl")]
    return [event for event in found if not kinds or event["kind"] in kinds]


def test_trials_that_end_their_process_cost_the_sweep_nothing_but_themselves(
    tmp_path, digits, monkeypatch
):
    monkeypatch.setattr(cluster.DaskEngine, "grace_seconds", 1.0)
    limits = {"workers": 1, "max_minutes": 0.75, "max_megabytes": 2000}
    tries = [{"batch_size": size, "depth": 1} for size in (16, 32, 128, 256, 16)]
    tries[-1]["filters_1"] = 16  # another configuration, that is killed as well
    tries += [dict(tries[0]), {"filters_1": 128}]  # one asked for again; one that is not built
    outcome = run(tmp_path, digits, {"trials": 9, "engine": limits}, tries=tries)
    trials = outcome.record.trials
    assert {n: t.failure.get("reason") for n, t in trials.items()} == {
        0: None,
        1: "died",
        2: "died",
        3: "timeout",
        4: "memory",
        5: "died",
        6: "died",
        7: "build",
        8: None,
    }
    assert outcome.record.end == "finished"
    assert [trials[n].attempt for n in range(9)] == [1, 2, 2, 1, 1, 2, 1, 1, 1]
    assert "Fatal Python error: Segmentation fault" in trials[2].failure["message"]
    assert "after 2 attempts it was given up" in trials[1].failure["message"]
    assert "string_at" in trials[2].failure["traceback"]
    assert trials[3].failure["message"] == ("took longer than max_minutes = 0.75, and did not stop")
    assert "it was not begun" in trials[6].failure["message"]
    killed = events(outcome, "killed")
    assert [(e["trial"], e["reason"]) for e in killed] == [(1, "died"), (2, "died"), (5, "died")]
    check_mlflow(tmp_path, outcome)


def check_mlflow(folder, outcome):
    """Every attempt has a run that says how it ended; none is left running."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    attempts = {
        (int(run.data.tags["cnn_search.trial"]), int(run.data.tags["cnn_search.attempt"])): run
        for run in runs
        if "cnn_search.trial" in run.data.tags
    }
    assert len(attempts) + 1 == len(runs)
    for number, trial in outcome.record.trials.items():
        for attempt in range(1, trial.attempt + 1):
            run = attempts.pop((number, attempt))
            last = attempt == trial.attempt
            status = {"finished": "FINISHED", "failed": "FAILED"}[trial.status]
            assert run.info.status == (status if last else "KILLED")
            if status == "FAILED":
                assert run.data.tags["failure"] == trial.failure["reason"]
    assert attempts == {}


def test_a_trial_that_takes_too_long_stops_in_this_process_too(tmp_path, digits):
    # limit and trial are apart by far more than a slow machine makes of them
    slow = {"batch_size": 64, "depth": 1}
    changes = {"trials": 1, "training.epochs": 100_000, "engine": {"max_minutes": 0.2}}
    outcome = run(tmp_path, digits, changes | {"baselines": ["vgg_bn"]}, tries=[slow])
    assert [t.failure["reason"] for t in outcome.record.trials.values()] == ["timeout"] * 2
    assert [e["reason"] for e in events(outcome, "stop")] == ["timeout"] * 2
