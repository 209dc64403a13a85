"""Tests of `cnn_search.optimisation`: rates, steps and metrics against hand computation."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from cnn_search.datasets import load
from cnn_search.network import BlockConfig, NetworkConfig, build_network
from cnn_search.optimisation import (
    ConfusionMetric,
    Schedule,
    TrainingConfig,
    compile_model,
    targets_of,
)

Array = npt.NDArray[Any]
LINEAR = NetworkConfig(())  # no blocks: flatten and softmax, whose gradient is known by hand
CONVOLUTIONAL = NetworkConfig((BlockConfig(2, normalisation="batch", pooling="max"),))


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    """Gives 64 real digits, uint8 (64, 8, 8, 1), and their labels."""
    train = load("digits").train
    return train.images[:64], train.labels[:64]


def compiled(network: NetworkConfig, config: TrainingConfig, steps: int = 10, **more: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = build_network(network, (8, 8, 1), 10)
    compile_model(model, config, steps=steps, classes=10, metrics=more.get("metrics", []))
    return model


def rates(schedule: Schedule, *steps: int) -> list[float]:
    return [float(schedule(step)) for step in steps]


# Schedules


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        # at a peak of .1 over 100 steps: step -> rate
        ("cosine", 0.0, {0: 0.1, 25: 0.0853553, 50: 0.05, 75: 0.0146447, 100: 0.0}),
        ("cosine", 0.1, {0: 0.0, 5: 0.05, 10: 0.1, 55: 0.05, 100: 0.0}),
        ("one_cycle", 0.0, {0: 0.004, 15: 0.052, 30: 0.1, 51: 0.0793893, 65: 0.05, 100: 0.0}),
        ("triangular", 0.0, {0: 0.02, 23: 0.1, 62: 0.1 * (1 - 0.93 * 39 / 77), 100: 0.007}),
    ],
)
def test_a_schedule_rises_to_its_peak_and_falls_to_its_end(
    kind: str, warmup: float, expected: dict[int, float]
) -> None:
    schedule = Schedule(kind, 0.1, 100, warmup)
    assert rates(schedule, *expected) == pytest.approx(list(expected.values()), abs=1e-7)
    every = rates(schedule, *range(101))
    top = int(np.argmax(every))
    assert every[top] == pytest.approx(0.1)
    assert (np.diff(every[: top + 1]) > 0).all()
    assert (np.diff(every[top:]) < 0).all()


@pytest.mark.parametrize("kind", Schedule.SHAPES)
def test_a_schedule_stays_at_its_end(kind: str) -> None:
    schedule = Schedule(kind, 0.1, 100)
    end = rates(schedule, 100)
    assert rates(schedule, 101, 1000) == pytest.approx(end * 2)


@pytest.mark.parametrize("kind", Schedule.SHAPES)
def test_a_schedule_is_made_again_from_its_config(kind: str) -> None:
    schedule = Schedule(kind, 0.1, 100, 0.05)
    again = Schedule.from_config(schedule.get_config())
    assert rates(again, *range(0, 101, 7)) == rates(schedule, *range(0, 101, 7))


def test_a_compiled_model_steps_along_its_schedule(digits: tuple[Array, Array]) -> None:
    config = TrainingConfig("sgd", 0.1, schedule="cosine", warmup=0.5, momentum=0.0)
    model = compiled(LINEAR, config, steps=4)
    followed = []
    for _ in range(5):
        followed.append(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))
        model.train_on_batch(*digits)
    assert followed == pytest.approx([0, 0.05, 0.1, 0.05, 0], abs=1e-7)


def test_a_constant_rate_is_a_number() -> None:
    model = compiled(LINEAR, TrainingConfig(learning_rate=0.02))
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.02)
    assert "learning_rate" in [variable.name for variable in model.optimizer.variables]


# Steps


def softmax(scores: Array) -> Array:
    exponents = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(exponents / exponents.sum(1, keepdims=True))


def gradients(kernel: Array, bias: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    """Computes the gradient of the mean cross-entropy of a softmax regression."""
    x = images.reshape(len(images), -1) / 255
    error = (softmax(x @ kernel + bias) - targets) / len(images)
    return x.T @ error, error.sum(0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_sgd_steps_with_nesterov_momentum_and_decoupled_decay_as_by_hand(
    momentum: float, smoothing: float, decay: float, digits: tuple[Array, Array]
) -> None:
    rate = 0.5
    config = TrainingConfig(
        "sgd", rate, momentum=momentum, weight_decay=decay, label_smoothing=smoothing
    )
    model = compiled(LINEAR, config)
    images, labels = digits
    weights = [weight.astype(float) for weight in model.get_weights()]
    speeds = [np.zeros_like(weight) for weight in weights]
    targets = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
    for _ in range(3):
        model.train_on_batch(images, targets_of(labels, config, 10))
        slopes = gradients(*weights, images, targets)
        weights[0] *= 1 - rate * decay  # the kernel alone: a bias does not decay
        for k, slope in enumerate(slopes):
            speeds[k] = momentum * speeds[k] - rate * slope
            weights[k] += momentum * speeds[k] - rate * slope
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "rmsprop"])
def test_decay_takes_a_share_of_kernels_and_nothing_of_biases_and_normalisation(
    optimiser: Any, digits: tuple[Array, Array]
) -> None:
    rate, decay = 0.01, 0.3
    plain = compiled(CONVOLUTIONAL, TrainingConfig(optimiser, rate))
    decayed = compiled(CONVOLUTIONAL, TrainingConfig(optimiser, rate, weight_decay=decay))
    for model in (plain, decayed):  # gamma starts at 1, but beta and biases at 0: no decay to see
        for variable in model.trainable_variables:
            if variable.name in ("bias", "beta"):
                variable.assign(np.full(variable.shape, 0.5))
    before = {v.path: v.numpy() for v in plain.trainable_variables}
    for model in (plain, decayed):
        model.train_on_batch(*digits)
    kinds = set()
    for one, other in zip(plain.trainable_variables, decayed.trainable_variables, strict=True):
        expected = rate * decay * before[one.path] if one.name == "kernel" else 0
        np.testing.assert_allclose(one.numpy() - other.numpy(), expected, atol=1e-6)
        kinds.add(one.name)
    assert kinds == {"kernel", "bias", "gamma", "beta"}


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "rmsprop"])
def test_the_offsets_of_batch_normalisations_alone_learn_faster(
    optimiser: Any, digits: tuple[Array, Array]
) -> None:
    plain = compiled(CONVOLUTIONAL, TrainingConfig(optimiser, 0.001))
    faster = compiled(CONVOLUTIONAL, TrainingConfig(optimiser, 0.001, bias_rate=8.0))
    before = [v.numpy() for v in plain.trainable_variables]
    for model in (plain, faster):
        model.train_on_batch(*digits)
    changes = zip(before, plain.trainable_variables, faster.trainable_variables, strict=True)
    for start, one, other in changes:
        times = 8 if one.name == "beta" else 1
        np.testing.assert_allclose(other.numpy() - start, times * (one.numpy() - start), atol=1e-6)
        assert (one.numpy() != start).any()


def test_momentum_is_nesterovs_and_its_own_only_for_sgd() -> None:
    sgd = compiled(LINEAR, TrainingConfig("sgd", momentum=0.8)).optimizer
    assert (sgd.momentum, sgd.nesterov) == (0.8, True)
    plain = compiled(LINEAR, TrainingConfig("sgd", momentum=0.0)).optimizer
    assert (plain.momentum, plain.nesterov) == (0.0, False)
    rmsprop = compiled(LINEAR, TrainingConfig("rmsprop", momentum=0.8)).optimizer
    assert rmsprop.momentum == 0.0


def test_averaging_is_kerass_moving_average() -> None:
    averaged = compiled(LINEAR, TrainingConfig(averaging=0.99)).optimizer
    assert (averaged.use_ema, averaged.ema_momentum) == (True, 0.99)
    assert not compiled(LINEAR, TrainingConfig()).optimizer.use_ema


def test_lookahead_goes_on_from_an_average_that_forgets_less_and_less(
    digits: tuple[Array, Array],
) -> None:
    slow = compiled(LINEAR, TrainingConfig("sgd", 0.1, momentum=0.0, averaging=0.8, lookahead=2))
    plain = compiled(LINEAR, TrainingConfig("sgd", 0.1, momentum=0.0))
    average = slow.get_weights()
    for step in range(6):
        slow.train_on_batch(*digits)
        plain.train_on_batch(*digits)
        kept = 0.8 * (step / 10) ** 0.6  # of 10 steps
        pairs = zip(average, plain.get_weights(), strict=True)
        average = [kept * old + (1 - kept) * new for old, new in pairs]
        if step % 2:
            plain.set_weights(average)
        for found, expected in zip(slow.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


# Targets and losses


def test_without_smoothing_labels_stay_as_they_are() -> None:
    labels = np.array([2, 0, 1])
    assert targets_of(labels, TrainingConfig(), 3) is labels
    assert targets_of(labels, TrainingConfig(), 3, smooth=False) is labels


def test_smoothing_spreads_a_share_of_a_label_over_all_classes() -> None:
    smoothed = targets_of(np.array([2, 0]), TrainingConfig(label_smoothing=0.1), 4)
    assert smoothed.dtype == np.float32
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    np.testing.assert_allclose(smoothed, expected, atol=1e-7)


def test_validation_targets_stay_sharp() -> None:
    config = TrainingConfig(label_smoothing=0.1)
    sharp = targets_of(np.array([2, 0]), config, 4, smooth=False)
    np.testing.assert_array_equal(sharp, [[0, 0, 1, 0], [1, 0, 0, 0]])


def test_a_smoothed_loss_is_kerass_own_and_a_sharp_one_has_the_sparse_value(
    digits: tuple[Array, Array],
) -> None:
    images, labels = digits
    config = TrainingConfig(label_smoothing=0.2)
    smoothing, plain = compiled(LINEAR, config), compiled(LINEAR, TrainingConfig())
    one_hot = keras.utils.to_categorical(labels, 10)
    own = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)(one_hot, plain(images))
    own = keras.ops.convert_to_numpy(own)
    found = smoothing.evaluate(images, targets_of(labels, config, 10), verbose=0)
    assert found[0] == pytest.approx(float(own), rel=1e-5)
    sharp = targets_of(labels, config, 10, smooth=False)
    by_one_hot = smoothing.evaluate(images, sharp, verbose=0)
    assert by_one_hot == pytest.approx(plain.evaluate(images, labels, verbose=0), rel=1e-5)


# Metrics


def judged(y: Array, p: Array, name: Any, size: int = 64, classes: int = 5) -> float:
    metric = ConfusionMetric(name, classes)
    for start in range(0, len(y), size):
        metric.update_state(y[start : start + size], p[start : start + size])
    return float(metric.result())


@pytest.fixture(scope="module")
def judgements() -> tuple[Array, Array]:
    """Gives 300 labels of five classes of unequal size, and probabilities that often agree."""
    rng = np.random.default_rng(3)
    labels = rng.choice(5, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    return labels, softmax(rng.normal(size=(300, 5)) + 1.5 * np.eye(5)[labels])


@pytest.mark.parametrize("as_one", ["sparse", "column", "one_hot", "float"])
def test_metrics_are_scikit_learns(as_one: str, judgements: tuple[Array, Array]) -> None:
    labels, probabilities = judgements
    y = {
        "sparse": labels,
        "column": labels[:, None],
        "one_hot": np.eye(5, dtype=np.float32)[labels],
        "float": labels.astype(np.float32),
    }[as_one]
    predicted = probabilities.argmax(1)
    assert judged(y, probabilities, "balanced_accuracy") == pytest.approx(
        balanced_accuracy_score(labels, predicted), abs=1e-6
    )
    assert judged(y, probabilities, "macro_f1") == pytest.approx(
        f1_score(labels, predicted, average="macro"), abs=1e-6
    )


def test_a_class_never_seen_counts_as_0_and_makes_no_nan(judgements: tuple[Array, Array]) -> None:
    labels, probabilities = judgements
    seen = labels != 4
    y, p = labels[seen], np.delete(probabilities[seen], 4, 1)
    padded = np.pad(p, ((0, 0), (0, 1)))
    expected = f1_score(y, p.argmax(1), average="macro", labels=range(5), zero_division=0)
    assert judged(y, padded, "macro_f1") == pytest.approx(expected, abs=1e-6)
    recall = balanced_accuracy_score(y, p.argmax(1))
    assert judged(y, padded, "balanced_accuracy") == pytest.approx(recall * 4 / 5, abs=1e-6)


def test_a_metric_starts_again_after_a_reset(judgements: tuple[Array, Array]) -> None:
    labels, probabilities = judgements
    metric = ConfusionMetric("macro_f1", 5)
    metric.update_state(labels, probabilities)
    metric.reset_state()
    metric.update_state(labels[:50], probabilities[:50])
    predicted = probabilities[:50].argmax(1)
    expected = f1_score(labels[:50], predicted, average="macro")
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_objectives_are_compiled_beside_accuracy(
    smoothing: float, digits: tuple[Array, Array]
) -> None:
    images, labels = digits
    config = TrainingConfig(label_smoothing=smoothing)
    wanted = ["val_accuracy", "val_loss", "val_macro_f1", "val_balanced_accuracy"]
    model = compiled(LINEAR, config, metrics=wanted)
    targets = targets_of(labels, config, 10)
    found = model.evaluate(images, targets, verbose=0, return_dict=True, batch_size=10)
    assert set(found) == {"loss", "accuracy", "macro_f1", "balanced_accuracy"}
    predicted = model.predict(images, verbose=0).argmax(1)
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    assert found["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, average="macro", labels=range(10), zero_division=0), abs=1e-6
    )
