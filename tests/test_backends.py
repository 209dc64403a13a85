"""Tests of a whole sweep on another backend than TensorFlow: `make test-jax`, `make test-torch`."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from cnn_search import backend, champion, datasets, explanation
from cnn_search.ledger import find_sweep, read_record

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() == "tensorflow",
        reason="all other tests are of TensorFlow; this one needs KERAS_BACKEND",
    ),
    pytest.mark.filterwarnings("ignore:.*inferred as AnyType"),  # MLflow 3.17, of its own
]


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a sweep by the command itself: search, final scoring, report, in a worker process."""
    folder = tmp_path_factory.mktemp("sweep") / "mlruns"
    command = [sys.executable, "-m", "cnn_search.sweep", "digits", "--trials", "3"]
    command += ["--epochs", "3", "--set", "final.seeds=2", "--set", "final.top=1"]
    settings = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [*command, "--mlruns", str(folder)], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_sweep_of_digits_is_searched_scored_and_registered(mlruns: Path) -> None:
    folder = find_sweep(mlruns, "digits")
    assert folder is not None
    record = read_record(folder / "ledger.jsonl")
    assert [trial.status for trial in record.trials.values()].count("finished") >= 1
    assert record.scoring_end == "finished"
    assert len(record.finals) == 2 * len(record.plans[-1]["finalists"])
    assert (folder / "report.html").exists()
    starts = [line for line in (folder / "ledger.jsonl").open() if '"kind": "start"' in line]
    name = keras.backend.backend()
    assert starts
    assert all(f'"backend": "{name}"' in line for line in starts)


def test_a_champion_predicts_and_is_explained(mlruns: Path) -> None:
    chosen = champion.read("digits", mlruns)
    image = datasets.load("digits", train_limit=300).validation.images[0]
    black, shown = chosen.model.predict(np.stack([0 * image, image]), verbose=0)
    index = int(shown.argmax())
    parts = explanation.attributions(chosen.model, image, index)
    assert parts.sum() == pytest.approx(shown[index] - black[index], abs=0.02)


def test_the_gradient_is_that_of_small_changes() -> None:
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, activation="softmax"))
    images = np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype(np.float32)
    found = backend.gradients(model, images, 1)
    changed = images.copy()
    changed[0, 2, 3, 0] += 1e-2
    before, after = (model.predict(x, verbose=0)[0, 1] for x in (images, changed))
    assert found.shape == images.shape
    assert found[0, 2, 3, 0] == pytest.approx((after - before) / 1e-2, abs=1e-3)
