"""Tests of somebody's own KerasTuner hypermodels as spaces: discovered, searched, kept, refused."""

import json
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import test_tracking as tiny
from click.testing import CliRunner

from cnn_search import datasets, hypermodels, sweep
from cnn_search.errors import DefinitionError
from cnn_search.ledger import find_sweep, read_record
from cnn_search.network import count_flops
from cnn_search.spaces import coerce, declared
from cnn_search.training import Protocol, Setup, Task, make_space, train

FILES = Path(__file__).parent / "hypermodels"
GUIDE, FUNCTION = f"{FILES / 'guide.py'}:MyHyperModel", f"{FILES / 'function.py'}:build"


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits", train_limit=300)


def made(reference: str, digits: datasets.Dataset, folder: Path, **options: Any) -> Any:
    return make_space(Setup(reference, Protocol(2), folder, **options), digits)


def trained(
    reference: str, digits: datasets.Dataset, folder: Path, **values: Any
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    train(
        Task(0, 1, values, 1, 2),
        Setup(reference, Protocol(2), folder),
        digits,
        lambda kind, **fields: events.append({"kind": kind, **fields}),
    )
    return events


def test_all_that_the_guide_varies_is_found_also_what_only_a_deeper_network_has(
    digits: datasets.Dataset, tmp_path: Path
) -> None:
    space = declared(made(GUIDE, digits, tmp_path))
    assert sorted(hp.name for hp in space.space) == sorted(
        ["num_layers", "units_0", "units_1", "units_2", "activation", "dropout", "rate", "lr"]
        + ["batch_size", "shuffle"]
    )
    assert made(GUIDE, digits, tmp_path).baseline_values("defaults")["num_layers"] == 1


def test_a_model_that_scales_its_pixels_deep_inside_gets_them_whole() -> None:
    for layers, scale in (([keras.layers.Rescaling(1 / 255)], 1.0), ([], 1 / 255)):
        front = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten()])
        model = keras.Sequential([keras.Input((8, 8, 1)), front, keras.layers.Dense(10)])
        assert hypermodels._scale(model) == scale


def test_whole_numbers_without_a_step_are_any_in_their_range(
    digits: datasets.Dataset, tmp_path: Path
) -> None:
    space = declared(made(FUNCTION, digits, tmp_path))
    filters = next(hp for hp in space.space if hp.name == "filters")
    assert coerce(filters, 13) == 13
    assert coerce(filters, 65) is None
    assert coerce(filters, 13.5) is None


@pytest.mark.parametrize("reference", [GUIDE, FUNCTION])
def test_the_model_that_is_kept_takes_pixels_and_gives_the_recorded_accuracy(
    reference: str, digits: datasets.Dataset, tmp_path: Path
) -> None:
    done = trained(reference, digits, tmp_path)[-1]
    assert done["kind"] == "done", done
    model = keras.saving.load_model(tmp_path / "trials/0000/model.keras")
    assert model.inputs[0].dtype == "uint8"
    probabilities = model.predict(digits.validation.images, verbose=0)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    accuracy = np.mean(probabilities.argmax(axis=1) == digits.validation.labels)
    assert accuracy == pytest.approx(done["score"])
    described = json.loads((tmp_path / "trials/0000/configuration.json").read_text())
    assert described["configuration"]["hypermodel"] == reference


def test_a_model_that_rescales_itself_gets_pixels_as_they_are(
    digits: datasets.Dataset, tmp_path: Path
) -> None:
    ends = {}
    for reference in (GUIDE, FUNCTION):
        space = made(reference, digits, tmp_path)
        model = space.build(space.hyperparameters({}))
        pixels, labels = space._prepared(model, digits.train.images, digits.train.labels)
        ends[reference] = (pixels.max(), labels.ndim)
    assert ends == {GUIDE: (1, 2), FUNCTION: (255, 1)}


def test_separable_convolutions_have_flops_too(digits: datasets.Dataset, tmp_path: Path) -> None:
    space = made(FUNCTION, digits, tmp_path)
    hp = space.hyperparameters({"kind": "separable", "filters": 8})
    by_hand = 2 * 36 * (9 + 8) + 2 * 8 * 10
    assert count_flops(space.build(hp)) == by_hand
    assert count_flops(space.finished(hp)) == by_hand


def test_keras_tuners_own_hypermodels_are_made_for_the_images(
    digits: datasets.Dataset, tmp_path: Path
) -> None:
    space = made("keras_tuner.applications:HyperResNet", digits, tmp_path)
    assert isinstance(space.hypermodel, keras_tuner.applications.HyperResNet)
    assert space.hypermodel.classes == 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("build_nothing", "expected a compiled keras.Model; received 1"),
        (
            "build_for_others",
            r"expected a model of images \(8, 8, 1\) and 10 classes; received one",
        ),
        ("NUMBER", r"expected a subclass of .*Space, a keras_tuner.HyperModel or a function"),
        ("missing", "no attribute|has no attribute"),
    ],
)
def test_what_is_no_model_for_these_images_is_refused_before_any_training(
    name: str, expected: str, digits: datasets.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DefinitionError, match=expected):
        declared(made(f"{FILES / 'function.py'}:{name}", digits, tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("build_without_accuracy", "compiled with the metric 'accuracy'"),
        ("Deaf", "expected a fit that hands its callbacks on to model.fit"),
    ],
)
def test_a_trial_without_the_metric_or_the_epochs_that_are_asked_for_fails_and_says_so(
    name: str, expected: str, digits: datasets.Dataset, tmp_path: Path
) -> None:
    failed = trained(f"{FILES / 'function.py'}:{name}", digits, tmp_path)[-1]
    assert failed["kind"] == "failed"
    assert expected in failed["message"]


def test_a_hypermodel_is_searched_scored_and_reported_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.forget_the_user(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        'data = "digits"\ntrials = 4\n[training]\nepochs = 2\n[final]\ntop = 1\nseeds = 2\n'
    )
    options = "--train-limit 300 --workers 0"
    done = CliRunner().invoke(sweep.main, ["mine.toml", "--space", GUIDE, *options.split()])
    assert done.exit_code == 0, done.exception
    folder = find_sweep(tmp_path / "mlruns", "mine")
    assert folder is not None
    record = read_record(folder / "ledger.jsonl")
    assert record.trials[0].values["num_layers"] == 1
    assert record.scoring_end == "finished"
    assert "defaults" in (folder / "report.md").read_text()
