"""Tests of what is seen in MLflow's pages, in a real Chromium: table, comparison, pictures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import test_tracking as tiny
from click.testing import CliRunner

from cnn_search import store, ui
from cnn_search.errors import TrackingError
from cnn_search.ledger import Record, read_record
from cnn_search.store import Store

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = [pytest.mark.filterwarnings("ignore:.*inferred as AnyType"), pytest.mark.slow]
SHOT = Path(os.environ["CNN_SEARCH_SHOTS"]) if "CNN_SEARCH_SHOTS" in os.environ else None


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sweep(tmp_path_factory)


@pytest.fixture(scope="module")
def record(mlruns: Path) -> Record:
    return read_record(tiny.folder_of(mlruns) / "ledger.jsonl")


@pytest.fixture(scope="module")
def opened(mlruns: Path) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        tiny.forget_the_user(patch)
        return store.open_store(mlruns, "digits")


@pytest.fixture(scope="module")
def address(mlruns: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Gives the page that `python -m cnn_search.ui digits` shows."""
    log = tmp_path_factory.mktemp("ui") / "out.txt"
    command = [sys.executable, "-m", "cnn_search.ui", "digits", "--no-open"]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, "--mlruns", str(mlruns)],
            stdout=out,
            stderr=out,
            env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        )
        until = time.monotonic() + 240
        while "Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        yield next(line for line in log.read_text().splitlines() if line.startswith("http"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []  # nothing is left behind


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.set_default_timeout(60_000)
    # an assistant that MLflow opens at a first visit, over a part of the page
    opened.add_init_script(
        "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    )
    yield opened
    opened.close()


def shoot(tab: Any, name: str) -> None:
    """Keeps a picture where CNN_SEARCH_SHOTS says, for a person to look at."""
    if SHOT:
        tab.wait_for_timeout(2000)
        tab.screenshot(path=SHOT / f"{name}.png")


def runs_of(opened: Store) -> dict[str, str]:
    client = opened.client()
    found = client.search_runs([str(opened.experiment_id(client))])
    return {run.info.run_name: run.info.run_id for run in found}


def page(address: str, path: str) -> str:
    return address.split("#")[0] + "#" + path


def until(tab: Any, holds: Callable[[], bool], seconds: int = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        tab.wait_for_timeout(500)
    return False


def test_the_table_says_which_trial_is_best_and_what_it_is(
    address: str, tab: Any, record: Record
) -> None:
    tab.goto(address)
    tab.get_by_text("trial 000 vgg_bn").wait_for()
    shoot(tab, "table")
    names = [text for text in tab.inner_text("body").splitlines() if text.startswith("trial 0")]
    assert names[0].startswith(f"trial {record.ranking()[0].number:03d}")
    assert len(names) == len(record.trials)
    for column in ("best_val_accuracy", "parameters", "kind", "outcome", "changed"):
        assert tab.get_by_role("columnheader", name=re.compile(column)).count() > 0, column
    cells = tab.locator("[role=gridcell]").all_inner_texts()
    assert "baseline vgg_bn" in cells
    assert cells.count("finished") == sum(t.status == "finished" for t in record.trials.values())


def test_the_views_are_offered_by_name(address: str, tab: Any) -> None:
    tab.goto(address)
    tab.get_by_role("button", name="Trials, best first").click()
    tab.get_by_text("Final scoring").wait_for()


def test_baseline_and_best_are_compared(
    address: str, tab: Any, opened: Store, record: Record
) -> None:
    runs = runs_of(opened)
    best = next(run for name, run in runs.items() if name == f"trial {record.champion:03d}")
    both, experiment = [runs["trial 000 vgg_bn"], best], opened.experiment_id(opened.client())
    query = urllib.parse.urlencode({"runs": json.dumps(both), "experiments": f'["{experiment}"]'})
    tab.goto(page(address, f"/compare-runs?{query}"))
    tab.get_by_text("Parallel Coordinates Plot").wait_for()
    tab.locator(".js-plotly-plot .parcoords-lines, .js-plotly-plot .parcoords").first.wait_for()
    shoot(tab, "comparison")
    text = tab.inner_text("body")
    assert "Comparing 2 Runs" in text
    assert "trial 000 vgg_bn" in text
    for name in ("filters_1", "dropout_1", "best_val_accuracy"):
        assert name in text, name


def test_report_and_pictures_open_among_the_artifacts(
    address: str, tab: Any, opened: Store, record: Record
) -> None:
    runs, experiment = runs_of(opened), opened.experiment_id(opened.client())
    where = f"/experiments/{experiment}/runs/{runs['trial 000 vgg_bn']}/artifacts"
    tab.goto(page(address, f"{where}/curves.png"))
    picture = tab.locator("img[src^='blob:'], img[src*='curves.png'], .js-plotly-plot image").first
    picture.wait_for()
    shoot(tab, "picture")
    text = tab.inner_text("body")
    for name in ("configuration.json", "validation_predictions.png", "diagram"):
        assert name in text, name


def test_the_registry_shows_the_champion(address: str, tab: Any) -> None:
    tab.goto(page(address, "/models/digits"))
    tab.get_by_text("@ champion").wait_for()
    shoot(tab, "registry")
    assert "Version 1" in tab.inner_text("body")


def test_a_sweep_that_runs_shows_a_growing_curve(
    address: str, tab: Any, mlruns: Path, opened: Store
) -> None:
    command = [sys.executable, "-m", "cnn_search.sweep", "digits", "--new", "--trials", "1"]
    command += ["--epochs", "100000", "--train-limit", "200", "--workers", "0", "--no-final"]
    sweep = subprocess.Popen(
        [*command, "--mlruns", str(mlruns)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
    )
    try:
        # asked of the server: this process, which has read the same database before, once saw
        # nothing of what another wrote to it for four minutes
        client = mlflow.MlflowClient(address.split("/#")[0])
        experiment = str(opened.experiment_id(opened.client()))

        def running() -> list[Any]:
            return list(client.search_runs([experiment], "tags.outcome = 'running'"))

        assert until(tab, lambda: any("val_accuracy" in r.data.metrics for r in running()), 240)
        run = running()[0].info.run_id

        def last_step() -> float:
            # not how many points: MLflow draws a few hundred of them at most
            tab.goto(page(address, f"/experiments/{experiment}/runs/{run}/model-metrics"))
            tab.reload()
            tab.locator(".js-plotly-plot").first.wait_for()
            steps = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0].x.at(-1))"
            return float(max(tab.evaluate(steps)))

        first = last_step()
        shoot(tab, "running")
        assert first > 0
        assert until(tab, lambda: last_step() > first)
    finally:
        sweep.send_signal(signal.SIGINT)
        said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 130
    assert b"nothing is lost" in said


def test_a_sweep_that_never_ran_has_no_page(mlruns: Path) -> None:
    done = CliRunner().invoke(ui.main, ["nothing", "--mlruns", str(mlruns)])
    assert isinstance(done.exception, TrackingError)
    assert "expected a sweep called 'nothing'" in str(done.exception)
    assert "starting" not in done.output


@pytest.mark.parametrize("opens", [True, False])
def test_a_server_of_the_users_own_is_shown_and_none_started(
    opens: bool, monkeypatch: pytest.MonkeyPatch, mlruns: Path
) -> None:
    shown: list[str] = []
    own = Store("http://me:secret@tracking.example", "digits", None)
    monkeypatch.setattr(store, "open_store", lambda mlruns, name: own)
    monkeypatch.setattr(Store, "experiment_id", lambda self, client: "7")
    monkeypatch.setattr(ui.webbrowser, "open", shown.append)
    done = CliRunner().invoke(ui.main, ["digits", *([] if opens else ["--no-open"])])
    address = "http://tracking.example/#/experiments/7/runs?viewStateShareKey=cnn_search_trials"
    assert done.output == f"{address}\n"
    assert shown == ([address] if opens else [])
