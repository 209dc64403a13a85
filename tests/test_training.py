"""Tests of `cnn_search.training.train`: real trainings of small networks on a few real digits.

The data set's test part raises whenever it is looked at: every test here is also a test that no
training touches it (an error in a training is a "failed" event, which `history` refuses).
"""

import dataclasses
import json
import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from cnn_search import backend, training
from cnn_search.datasets import Dataset, Part, load
from cnn_search.errors import DefinitionError
from cnn_search.network import build_network, count_flops
from cnn_search.training import Protocol, Setup, Task, best_epoch, find_space, make_space, train
from search_spaces import digits as digits_space

PLAIN = {
    "depth": 1,
    "convolutions": 1,
    "filters_1": 4,
    "normalisation_1": "none",
    "dropout_1": 0.0,
    "dense_units": 0,
    "head_dropout": 0.0,
    "shift": 0.0,
    "zoom": 0.0,
    "batch_size": 64,
}
RICH = PLAIN | {
    "whitening": True,
    "identity": True,
    "normalisation_1": "batch",
    "normalisation_momentum": 0.9,
    "normalisation_scale": False,
    "logit_scale": 0.3,
    "bias_rate": 8.0,
    "dropout_1": 0.2,
    "dense_units": 64,
    "head_dropout": 0.2,
    "shift": 0.1,
    "zoom": 0.1,
    "rotation": 10.0,
    "crop": 1,
    "cutout": 2,
    "optimiser": "sgd",
    "sgd_learning_rate": 0.1,
    "momentum": 0.9,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "averaging": 0.8,  # the space's .99 looks back over more steps than there are here
    "lookahead": 2,
}
STILL = PLAIN | {"learning_rate": 0.0}  # no epoch is better than the first


class Untouchable:
    """Stands for a test part, and raises whenever it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test part was asked for its {name}")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Gives 192 digits to train and 96 to validate."""
    whole = load("digits")
    return dataclasses.replace(
        whole,
        train=Part(whole.train.images[:192], whole.train.labels[:192]),
        validation=Part(whole.validation.images[:96], whole.validation.labels[:96]),
        test=Untouchable(),  # type: ignore[arg-type]
    )


@dataclass
class Attempt:
    """What one call of `train` emitted, and where its files are."""

    setup: Setup
    task: Task
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def tell(self, kind: str, **event: Any) -> None:
        """Take in an event, without what no two attempts have in common."""
        if kind == "done":
            assert event.pop("memory_bytes") > 1e8
        self.events.append((kind, event))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    @property
    def folder(self) -> Path:
        return self.setup.trial_folder(self.task.trial)

    @property
    def epochs(self) -> dict[int, dict[str, float]]:
        """The metrics of each epoch that was emitted, by its number."""
        return {e["epoch"]: e["metrics"] for kind, e in self.events if kind == "epoch"}

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1][1]

    @property
    def done(self) -> dict[str, Any]:
        assert self.kinds[-1] == "done", self.last.get("traceback", self.kinds)
        return self.last

    def model(self, name: str = "model") -> Any:
        return keras.saving.load_model(self.folder / f"{name}.keras", safe_mode=True)


Stopper = Callable[[Attempt], Any]


def attempt(
    dataset: Dataset,
    folder: Path,
    values: dict[str, Any],
    epochs: int = 3,
    *,
    trial: int = 0,
    number: int = 1,
    seed: int = 1,
    parent: int | None = None,
    stop: Stopper = lambda attempt: "",
    **options: Any,
) -> Attempt:
    """Trains one attempt; `options` are fields of Protocol (of 3 epochs or more) and of Setup."""
    fields = {f.name for f in dataclasses.fields(Protocol)}
    protocol = Protocol(max(epochs, 3), **{k: v for k, v in options.items() if k in fields})
    chosen = {"space": "digits"} | {k: v for k, v in options.items() if k not in fields}
    made = Attempt(
        Setup(protocol=protocol, folder=folder, **chosen),
        Task(trial, number, values, seed, epochs, parent),
    )
    train(
        made.task,
        made.setup,
        dataset,
        made.tell,
        lambda: stop(made),
    )
    return made


@pytest.fixture(scope="module")
def plain(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """Gives a plain trial of three epochs that nothing disturbed."""
    return attempt(digits, tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def rich(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """Gives a trial of three epochs with everything on, that nothing disturbed."""
    return attempt(digits, tmp_path_factory.mktemp("rich"), RICH)


@pytest.fixture(params=["plain", "rich"])
def straight(request: pytest.FixtureRequest) -> Attempt:
    """Gives each of the two."""
    made: Attempt = request.getfixturevalue(request.param)
    assert made.kinds == ["start", "epoch", "epoch", "epoch", "done"]
    return made


def same_outcome(one: Attempt, other: Attempt) -> None:
    """Requires the same end to the last bit; only the size of the zipped file may differ."""
    assert one.done | {"model_bytes": 0} == other.done | {"model_bytes": 0}
    for a, b in zip(one.model().get_weights(), other.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def judge(model: Any, part: Part) -> dict[str, float]:
    """Evaluates a model afresh, by numpy and scikit-learn."""
    probabilities = keras.ops.convert_to_numpy(model(part.images, training=False))
    predicted = probabilities.argmax(1)
    return {
        "val_accuracy": float((predicted == part.labels).mean()),
        "val_loss": float(-np.log(probabilities[np.arange(len(predicted)), part.labels]).mean()),
        "val_balanced_accuracy": float(balanced_accuracy_score(part.labels, predicted)),
        "val_macro_f1": float(f1_score(part.labels, predicted, average="macro")),
    }


# The same again


def test_the_same_seed_gives_the_same_curve_to_the_last_digit(
    straight: Attempt, digits: Dataset, tmp_path: Path
) -> None:
    again = attempt(digits, tmp_path, dict(straight.task.values))
    assert again.epochs == straight.epochs
    same_outcome(again, straight)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's alone")
@pytest.mark.parametrize("values", [PLAIN, RICH], ids=["plain", "rich"])
def test_a_training_step_is_traced_once_and_freed_before_the_next_trial(
    values: dict[str, Any], digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    step, graphs = keras.Model.train_step, []

    def traced(model: Any, data: Any) -> Any:
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        return step(model, data)

    monkeypatch.setattr(keras.Model, "train_step", traced)
    assert attempt(digits, tmp_path, values).done
    assert len(graphs) == 1
    backend.clear()
    assert graphs[0]() is None


def test_another_seed_gives_another_curve(plain: Attempt, digits: Dataset, tmp_path: Path) -> None:
    other = attempt(digits, tmp_path, PLAIN, epochs=1, seed=2)
    assert other.epochs[1]["loss"] != plain.epochs[1]["loss"]


def test_a_fidelity_cuts_into_the_curve_and_never_rescales_it(
    rich: Attempt, digits: Dataset, tmp_path: Path
) -> None:
    short = attempt(digits, tmp_path, RICH, epochs=1)
    assert short.epochs == {1: rich.epochs[1]}
    assert short.done["epochs"] == 1


def test_a_schedule_spans_the_full_epochs_in_steps(rich: Attempt) -> None:
    # 3 steps an epoch, 9 in all; a tenth of them leads up to the peak
    ways = [(steps / 9 - 0.1) / 0.9 for steps in (3, 6, 9)]
    expected = [0.05 * (1 + math.cos(math.pi * way)) for way in ways]
    found = [epoch["learning_rate"] for epoch in rich.epochs.values()]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-8)


# Stopped, and going on


def test_a_trial_stopped_after_every_epoch_goes_on_as_if_undisturbed(
    straight: Attempt, digits: Dataset, tmp_path: Path
) -> None:
    epochs: dict[int, dict[str, float]] = {}
    for number in (1, 2, 3):
        made = attempt(
            digits, tmp_path, dict(straight.task.values), number=number, stop=lambda _: "epoch"
        )
        assert made.kinds == ["start", "epoch", "stopped" if number < 3 else "done"]
        assert list(made.epochs) == [number]
        epochs |= made.epochs
    assert epochs == straight.epochs
    same_outcome(made, straight)


class NowInTheSecondEpoch:
    """Says "now" after the second batch of the second epoch."""

    asked = 0

    def __call__(self, made: Attempt) -> str:
        self.asked += bool(made.epochs)
        return "now" if self.asked == 2 else ""


@pytest.mark.parametrize(
    ("seconds", "left"), [(0.0, [2, 3]), (1e9, [1, 2, 3])], ids=["checkpoints", "none"]
)
def test_now_stops_inside_an_epoch_and_the_trial_goes_on_from_its_last_checkpoint(
    rich: Attempt, digits: Dataset, tmp_path: Path, seconds: float, left: list[int]
) -> None:
    stopped = attempt(
        digits, tmp_path, RICH, stop=NowInTheSecondEpoch(), checkpoint_seconds=seconds
    )
    assert stopped.kinds == ["start", "epoch", "stopped"]
    assert not (stopped.folder / "model.keras").exists()
    made = attempt(digits, tmp_path, RICH, number=2, checkpoint_seconds=seconds)
    assert list(made.epochs) == left
    assert made.epochs == {k: rich.epochs[k] for k in left}
    same_outcome(made, rich)


def test_now_at_the_first_batch_leaves_nothing_but_the_news(
    digits: Dataset, tmp_path: Path
) -> None:
    made = attempt(digits, tmp_path, PLAIN, stop=lambda _: "now")
    assert made.kinds == ["start", "stopped"]
    assert not list(made.folder.glob("*"))


def test_an_epoch_is_told_after_its_checkpoint_is_on_the_disk(
    digits: Dataset, tmp_path: Path
) -> None:
    setup = Setup("digits", Protocol(3), tmp_path, checkpoint_seconds=0.0)
    path = setup.trial_folder(0) / "checkpoint.npz"
    saved: list[Any] = []

    def emit(kind: str, **event: Any) -> None:
        if kind == "epoch":
            with np.load(path) as file:
                saved.append((event["epoch"], len(json.loads(str(file["told"]))[0])))

    train(Task(0, 1, PLAIN, 1, 3), setup, digits, emit)
    # the last epoch needs no checkpoint: what follows it is the model itself
    assert saved == [(1, 1), (2, 2), (3, 2)]
    assert not path.with_suffix(".partial").exists()


def test_who_goes_on_from_a_trial_whose_patience_was_at_its_end_has_a_state(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**PLAIN}
    first = attempt(digits, tmp_path, values, epochs=1, keep_state=True)
    with monkeypatch.context() as patch:
        patch.setattr(training._Follower, "ended", lambda self, epochs: True)
        second = attempt(digits, tmp_path, values, trial=1, parent=0, keep_state=True)
    assert (second.done["score"], second.epochs) == (first.done["score"], {})
    third = attempt(digits, tmp_path, values, epochs=2, trial=2, parent=1, keep_state=True)
    assert list(third.epochs) == [2]


def test_a_trial_goes_on_from_its_parents_last_state_with_the_optimisers(
    straight: Attempt, digits: Dataset, tmp_path: Path
) -> None:
    values = dict(straight.task.values)
    parent = attempt(digits, tmp_path, values, epochs=2, keep_state=True)
    assert parent.done["epochs"] == 2
    child = attempt(digits, tmp_path, values, trial=1, parent=0, keep_state=True)
    assert parent.epochs | child.epochs == straight.epochs
    assert list(child.epochs) == [3]
    same_outcome(child, straight)


def test_a_child_that_was_stopped_goes_on_from_its_own_checkpoint(
    digits: Dataset, tmp_path: Path
) -> None:
    attempt(digits, tmp_path, PLAIN, epochs=1, keep_state=True)
    child = {"trial": 1, "parent": 0, "keep_state": True}
    stopped = attempt(digits, tmp_path, PLAIN, **child, stop=lambda _: "epoch")
    assert list(stopped.epochs) == [2]
    assert list(attempt(digits, tmp_path, PLAIN, **child, number=2).epochs) == [3]


def test_a_trial_that_had_ended_only_hands_in_its_model_again(
    digits: Dataset, tmp_path: Path
) -> None:
    ended = attempt(digits, tmp_path, PLAIN, epochs=1, keep_state=True)
    again = attempt(digits, tmp_path, PLAIN, epochs=1, keep_state=True, number=2)
    assert again.kinds == ["start", "done"]
    same_outcome(again, ended)


# How long, and which weights


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_training_ends_after_so_many_epochs_without_a_better_one(
    digits: Dataset, tmp_path: Path, monitor: Any
) -> None:
    made = attempt(digits, tmp_path, STILL, 6, patience=2, monitor=monitor)
    assert list(made.epochs) == [1, 2, 3]
    assert (made.done["epochs"], made.done["best_epoch"]) == (3, 1)


def test_patience_holds_for_a_constant_rate_only(digits: Dataset, tmp_path: Path) -> None:
    values = STILL | {"schedule": "cosine"}
    assert len(attempt(digits, tmp_path, values, 3, patience=1).epochs) == 3


def test_patience_counts_the_epochs_before_a_stop_too(digits: Dataset, tmp_path: Path) -> None:
    first = attempt(digits, tmp_path, STILL, 6, patience=2, stop=lambda _: "epoch")
    assert first.kinds == ["start", "epoch", "stopped"]
    assert list(attempt(digits, tmp_path, STILL, 6, patience=2, number=2).epochs) == [2, 3]


class Spoil(keras.callbacks.Callback):
    """Takes all weights from a model at the end of its third epoch, before it is validated."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (2, 2):
            weights = [np.zeros_like(weight) for weight in self.model.get_weights()]
            weights[-1][0] = 50  # sure that everything is a 0
            self.model.set_weights(weights)


class Spoilt(digits_space.Space):
    """A space whose models are worst in the end."""

    def fit(self, hp: Any, model: Any, *args: Any, callbacks: Any = (), **options: Any) -> Any:
        return super().fit(hp, model, *args, callbacks=[Spoil(), *callbacks], **options)


SPOILT = {"space": f"{__name__}:Spoilt", "both_weights": True}


def test_the_best_epochs_weights_are_kept_and_score(digits: Dataset, tmp_path: Path) -> None:
    quick = PLAIN | {"learning_rate": 0.03}  # it has learnt something by then
    made = attempt(digits, tmp_path, quick, weights="best", **SPOILT)
    assert made.done["best_epoch"] < 3
    assert made.done["metrics"] == made.epochs[made.done["best_epoch"]]
    assert made.done["score"] == made.done["metrics"]["val_accuracy"]
    best, last = (
        judge(made.model(), digits.validation),
        judge(made.model("last"), digits.validation),
    )
    for name in ("val_accuracy", "val_loss"):
        assert best[name] == pytest.approx(made.done["metrics"][name], rel=1e-5)
    assert last["val_loss"] > 10
    assert last["val_accuracy"] == pytest.approx(made.epochs[3]["val_accuracy"], rel=1e-5)
    assert not (made.folder / "best.keras").exists()


def test_the_last_epochs_weights_are_kept_where_the_protocol_says_so(
    digits: Dataset, tmp_path: Path
) -> None:
    made = attempt(digits, tmp_path, PLAIN, weights="last", **SPOILT)
    assert (made.done["best_epoch"], made.done["epochs"]) == (3, 3)
    assert made.done["score"] == made.epochs[3]["val_accuracy"]
    assert all(not weight.any() for weight in made.model().get_weights()[:-1])
    assert any(weight.any() for weight in made.model("best").get_weights())


def test_the_saved_model_scores_what_was_recorded(straight: Attempt, digits: Dataset) -> None:
    # also with averaged weights, and with sharp validation labels under label smoothing
    recorded, afresh = straight.done["metrics"], judge(straight.model(), digits.validation)
    assert afresh["val_accuracy"] == pytest.approx(recorded["val_accuracy"], abs=1e-6)
    assert afresh["val_loss"] == pytest.approx(recorded["val_loss"], rel=1e-4)
    assert straight.done["score"] == recorded["val_accuracy"]


def test_a_tie_goes_to_the_lower_validation_loss_and_then_to_the_first() -> None:
    def history(*rows: tuple[float, float]) -> list[dict[str, float]]:
        return [{"val_accuracy": a, "val_loss": b} for a, b in rows]

    assert best_epoch(history((0.5, 1.0), (0.6, 2.0), (0.6, 1.5), (0.6, 1.5)), "val_accuracy") == 2
    assert best_epoch(history((0.5, 1.0), (0.6, 2.0)), "val_loss") == 0
    assert best_epoch([{"loss": 1.0}, {"loss": 2.0}], "val_accuracy") == 1


STEPS: list[list[Any]] = []


class Recorded(digits_space.Space):
    """A space that writes down the weights after every step."""

    def fit(self, hp: Any, model: Any, *args: Any, callbacks: Any = (), **options: Any) -> Any:
        def write_down(batch: int, logs: Any) -> None:
            if keras.backend.backend() == "jax":  # else the variables are empty within an epoch
                model.jax_state_sync()
            STEPS.append([keras.ops.convert_to_numpy(v) for v in model.trainable_variables])

        record = keras.callbacks.LambdaCallback(on_train_batch_end=write_down)
        return super().fit(hp, model, *args, callbacks=[record, *callbacks], **options)


def test_averaged_weights_are_a_moving_average_over_the_steps(
    digits: Dataset, tmp_path: Path
) -> None:
    STEPS.clear()
    values = PLAIN | {"averaging": 0.7, "learning_rate": 0.01}
    made = attempt(digits, tmp_path, values, 2, weights="last", space=f"{__name__}:Recorded")
    assert made.done["epochs"] == 2
    assert len(STEPS) == 6
    average = STEPS[0]  # it starts with the weights after the first step
    for step in STEPS[1:]:
        average = [0.7 * a + 0.3 * b for a, b in zip(average, step, strict=True)]
    for found, expected in zip(made.model().get_weights(), average, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(average[0], STEPS[-1][0], atol=1e-4)


def test_without_validation_images_a_trial_ends_and_leaves_no_predictions(
    digits: Dataset, tmp_path: Path
) -> None:
    """The baseline of SIGNS failed at its end: a convolution of no image of three channels."""
    nothing = Part(digits.validation.images[:0], digits.validation.labels[:0])
    made = attempt(dataclasses.replace(digits, validation=nothing), tmp_path, PLAIN, 1)
    assert made.done["epochs"] == 1
    assert not (made.folder / "validation_predictions.npz").exists()
    assert (made.folder / "diagram.dot").exists()


# What goes wrong


def test_a_loss_that_is_not_finite_is_reported_as_diverged(digits: Dataset, tmp_path: Path) -> None:
    values = PLAIN | {"optimiser": "sgd", "sgd_learning_rate": math.inf}
    made = attempt(digits, tmp_path, values)
    assert made.kinds == ["start", "failed"]
    assert made.last["reason"] == "diverged"
    assert made.last["message"] == "loss became nan in epoch 1"
    assert "Diverged: loss became" in made.last["traceback"]
    assert not list(made.folder.glob("*"))


class Poisoned(digits_space.Space):
    """A space whose models are fine while they train and give NaN when they are validated."""

    def fit(self, hp: Any, model: Any, *args: Any, **options: Any) -> Any:
        images, labels = options["validation_data"]
        evaluate = model.evaluate

        def poisoned(*args: Any, **options: Any) -> Any:
            return {name: math.nan for name in evaluate(*args, **options)}

        model.evaluate = poisoned
        return super().fit(hp, model, *args, **options)


def test_a_metric_that_is_not_finite_is_reported_as_diverged(
    digits: Dataset, tmp_path: Path
) -> None:
    made = attempt(digits, tmp_path, PLAIN, space=f"{__name__}:Poisoned")
    assert made.kinds == ["start", "failed"]
    assert made.last["reason"] == "diverged"
    assert made.last["message"] in (
        "val_loss became nan in epoch 1",
        "val_accuracy became nan in epoch 1",
    )


@pytest.mark.parametrize(
    ("values", "options", "reason", "message"),
    [
        (
            {"activation": "no such"},
            {},
            "build",
            "ValueError: Could not interpret activation function",
        ),
        ({}, {"space": "nowhere"}, "error", "DefinitionError: space: expected the name of a file"),
        ({"optimiser": "adagrad"}, {}, "build", "KeyError: 'adagrad'"),
    ],
)
def test_an_error_is_an_event_with_its_traceback_and_never_raised(
    digits: Dataset, tmp_path: Path, values: Any, options: Any, reason: str, message: str
) -> None:
    made = attempt(digits, tmp_path, PLAIN | values, **options)
    assert made.kinds == ["start", "failed"]
    assert made.last["reason"] == reason
    assert made.last["message"].startswith(message)
    assert "\n" not in made.last["message"]
    assert made.last["traceback"].startswith("Traceback (most recent call last)")


class Huge(digits_space.Space):
    """A space whose models never fit the memory."""

    def build(self, hp: Any) -> Any:
        raise MemoryError("no room")


def test_a_want_of_memory_has_its_own_reason(digits: Dataset, tmp_path: Path) -> None:
    made = attempt(digits, tmp_path, PLAIN, space=f"{__name__}:Huge")
    assert (made.last["reason"], made.last["message"]) == ("memory", "MemoryError: no room")
    assert "MemoryError" in made.last["traceback"]


def test_a_space_that_is_not_there_is_the_users_mistake() -> None:
    for reference in ("nowhere", "search_spaces.nowhere", "search_spaces.digits:Nothing"):
        with pytest.raises(DefinitionError, match=f"space: expected .* received '{reference}'"):
            find_space(reference)


def test_a_space_is_found_by_name_module_or_class() -> None:
    for reference in ("digits", "search_spaces.digits", "search_spaces.digits:Space"):
        assert find_space(reference) is digits_space.Space


# Objectives and class weights


@pytest.mark.parametrize("objective", [o for o in training.OBJECTIVES if o != "val_accuracy"])
def test_the_objective_decides_the_score_and_the_best_epoch(
    digits: Dataset, tmp_path: Path, objective: str
) -> None:
    made = attempt(digits, tmp_path, PLAIN, 2, objective=objective)
    scores = [epoch[objective] for epoch in made.epochs.values()]
    best = min(scores) if objective == "val_loss" else max(scores)
    assert made.done["score"] == best == scores[made.done["best_epoch"] - 1]
    afresh = judge(made.model(), digits.validation)
    assert afresh[objective] == pytest.approx(made.done["score"], rel=1e-4)


@pytest.fixture(scope="module")
def uneven(digits: Dataset) -> Dataset:
    """Gives the same digits without most of its 1s."""
    rows = np.flatnonzero((digits.train.labels != 1) | (np.arange(192) < 40))
    return dataclasses.replace(
        digits, train=Part(digits.train.images[rows], digits.train.labels[rows])
    )


def test_class_weights_weigh_the_training_loss_by_the_inverse_of_a_classes_share(
    uneven: Dataset, tmp_path: Path
) -> None:
    weighed = attempt(uneven, tmp_path / "a", STILL, 1, class_weights=True)
    plain = attempt(uneven, tmp_path / "b", STILL, 1)
    labels = uneven.train.labels
    probabilities = keras.ops.convert_to_numpy(plain.model()(uneven.train.images))
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    weights = np.array([len(labels) / (10 * (labels == label).sum()) for label in labels])
    assert weights.mean() == pytest.approx(1)
    assert plain.epochs[1]["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert weighed.epochs[1]["loss"] == pytest.approx((weights * losses).mean(), rel=1e-4)
    assert abs(weighed.epochs[1]["loss"] - plain.epochs[1]["loss"]) > 1e-3
    for name in ("accuracy", "val_loss", "val_accuracy"):  # how it is judged stays the same
        assert weighed.epochs[1][name] == plain.epochs[1][name]


def test_a_model_of_many_views_is_scored_and_saved_as_such(digits: Dataset, tmp_path: Path) -> None:
    values = PLAIN | {"flip": True, "flip_alternates": True, "views": 6, "averaging": 0.8}
    made = attempt(digits, tmp_path, values, space="images", objective="val_balanced_accuracy")
    model, metrics = made.model(), made.done["metrics"]
    afresh = judge(model, digits.validation)
    for name in ("val_accuracy", "val_balanced_accuracy", "val_loss"):
        assert metrics[name] == pytest.approx(afresh[name], rel=1e-4), name
    assert made.done["score"] == metrics["val_balanced_accuracy"]
    # each epoch was judged by the image alone
    best = made.epochs[made.done["best_epoch"]]
    assert best["val_loss"] != pytest.approx(metrics["val_loss"], rel=1e-4)
    alone = judge(model.get_layer("cnn"), digits.validation)
    assert best["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
    assert made.done["flops"] == 6 * count_flops(model.get_layer("cnn"))
    assert "conv1" in (made.folder / "summary.txt").read_text()


def test_a_model_that_trained_in_bfloat16_is_kept_and_scored_in_float32(
    rich: Attempt, digits: Dataset, tmp_path: Path
) -> None:
    made = attempt(digits, tmp_path, RICH, precision="mixed_bfloat16")
    model = made.model()
    assert {layer.dtype_policy.name for layer in model.layers} <= {"float32", "uint8"}
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}
    afresh = judge(model, digits.validation)
    assert made.done["metrics"]["val_loss"] == pytest.approx(afresh["val_loss"], rel=1e-5)
    # it did train in another precision, to about the same
    best = rich.epochs[rich.done["best_epoch"]]["val_loss"]
    assert made.epochs != rich.epochs
    assert made.done["metrics"]["val_loss"] == pytest.approx(best, rel=0.2)
    # and the next one trains as ever
    assert attempt(digits, tmp_path / "next", RICH).epochs == rich.epochs


# What is handed in


def test_done_tells_the_truth_about_the_model(straight: Attempt, digits: Dataset) -> None:
    space = make_space(straight.setup, digits)
    configuration = space.configure(space.hyperparameters(straight.task.values))
    model = build_network(configuration.network, (8, 8, 1), 10)
    done = straight.done
    assert done["parameters"] == model.count_params()
    assert done["trainable_parameters"] == sum(
        int(np.prod(weight.shape)) for weight in model.trainable_weights
    )
    assert done["flops"] == count_flops(model)
    assert done["model_bytes"] == (straight.folder / "model.keras").stat().st_size
    assert done["blocks_dropped"] == 0
    assert done["epochs"] == len(straight.epochs) == 3
    accuracies = [epoch["val_accuracy"] for epoch in straight.epochs.values()]
    assert done["score"] == max(accuracies) == accuracies[done["best_epoch"] - 1]
    assert done["metrics"] == straight.epochs[done["best_epoch"]]


def test_done_tells_how_many_blocks_did_not_fit(digits: Dataset, tmp_path: Path) -> None:
    values = PLAIN | {"depth": 3} | {f"pooling_{i}": "max" for i in (1, 2, 3)}
    # 8 pixels: 6, pooled 3; then 1, which cannot be pooled
    values |= {f"padding_{i}": "valid" for i in (1, 2, 3)}
    values |= {f"filters_{i}": 8 for i in (1, 2, 3)}
    assert attempt(digits, tmp_path, values, 1).done["blocks_dropped"] == 2


def test_every_epoch_has_the_same_finite_metrics(straight: Attempt) -> None:
    for metrics in straight.epochs.values():
        assert set(metrics) == {"accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"}
        assert all(math.isfinite(value) for value in metrics.values())


def test_events_are_plain_json(straight: Attempt) -> None:
    for kind, event in straight.events:
        assert json.loads(json.dumps(event, allow_nan=False)) == event, kind


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_is_freed_stays_with_the_process() -> None:
    script = (
        "import resource, sys\n"
        "from cnn_search import backend\n"
        "if sys.argv[1] == 'kept': backend.keep_memory()\n"
        "bytearray(1 << 24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): bytearray(1 << 24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", script, way], text=True))
        for way in ("given back", "kept")
    }
    assert faults["kept"] < 0.1 * faults["given back"], faults


def test_threads_asked_for_after_the_backend_has_started_are_not_recorded() -> None:
    before = backend.describe()
    backend.prepare(threads=7)
    assert backend.describe() == before


def test_start_names_the_backend_and_its_threads(straight: Attempt) -> None:
    assert straight.events[0] == ("start", {"backend": keras.backend.backend(), "threads": 1})


def test_the_saved_model_has_no_optimiser_and_takes_raw_images(
    straight: Attempt, digits: Dataset
) -> None:
    model = straight.model()
    assert not model.compiled
    assert getattr(model, "optimizer", None) is None
    assert model.inputs[0].dtype == "uint8"
    with np.load(straight.folder / "validation_predictions.npz") as saved:
        np.testing.assert_array_equal(saved["images"], digits.validation.images[:25])
        np.testing.assert_array_equal(saved["labels"], digits.validation.labels[:25])
        found = keras.ops.convert_to_numpy(model(saved["images"], training=False))
        np.testing.assert_array_equal(saved["probabilities"], found)


def test_a_trials_folder_says_what_was_trained(straight: Attempt) -> None:
    described = json.loads((straight.folder / "configuration.json").read_text())
    assert described["values"] == straight.task.values
    assert described["seed"] == 1
    assert described["protocol"]["epochs"] == 3
    assert described["configuration"]["network"]["blocks"][0]["filters"] == 4
    summary = (straight.folder / "summary.txt").read_text(encoding="utf-8")
    assert "block1_conv1" in summary
    assert f"Total params: {straight.done['parameters']:,}" in summary
    assert "digraph" in (straight.folder / "diagram.dot").read_text(encoding="utf-8")


def test_without_validation_images_every_epoch_is_trained_and_the_last_one_kept(
    digits: Dataset, tmp_path: Path
) -> None:
    # as the tutorials of SIGNS and Fashion-MNIST do; asking for val_loss ended it after one epoch
    empty = Part(digits.validation.images[:0], digits.validation.labels[:0])
    dataset = dataclasses.replace(digits, validation=empty)
    made = attempt(dataset, tmp_path, PLAIN, 2, weights="last", patience=1)
    assert made.done["score"] is None
    assert (made.done["best_epoch"], made.done["epochs"]) == (2, 2)
    assert set(made.done["metrics"]) == {"accuracy", "loss", "learning_rate"}
    assert made.model().count_params() == made.done["parameters"]


def test_an_epoch_that_only_the_checkpoint_knows_is_emitted_again(
    digits: Dataset, tmp_path: Path
) -> None:
    """A kill may come after the checkpoint is on the disk and before the ledger's line is."""
    setup = Setup("digits", Protocol(3), tmp_path, checkpoint_seconds=0)
    first: list[tuple[str, dict[str, Any]]] = []
    task = Task(0, 1, PLAIN, 1, 3)

    def stop() -> Any:
        return "epoch" if len([kind for kind, _ in first if kind == "epoch"]) == 1 else ""

    train(task, setup, digits, lambda kind, **fields: first.append((kind, fields)), stop)
    told = [fields for kind, fields in first if kind == "epoch"]
    assert [fields["epoch"] for fields in told] == [1, 2]
    again: list[tuple[str, dict[str, Any]]] = []
    resumed = Task(0, 2, PLAIN, 1, 3, recorded=1)  # the line of epoch 2 was lost
    train(resumed, setup, digits, lambda kind, **fields: again.append((kind, fields)))
    retold = [fields for kind, fields in again if kind == "epoch"]
    assert retold[0] == told[1]
    assert [fields["epoch"] for fields in retold] == [2, 3]
