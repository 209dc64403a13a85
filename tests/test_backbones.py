"""Tests of pre-trained networks: the real architectures, with weights that the tests make.

ImageNet's own weights cannot be had here; what hands them over, Keras's download, is replaced by
one that knows two files and refuses any other.
"""

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import test_tracking as tiny
from click.testing import CliRunner
from keras.src.utils import file_utils
from PIL import Image

from cnn_search import backbones, datasets, predict, sweep
from cnn_search.errors import ModelError
from cnn_search.network import NetworkConfig, build_network, count_flops
from cnn_search.training import Protocol, Setup, Task, make_space, train

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")

SIDE = 64
MODULES = {
    "vgg16": keras.applications.vgg16,
    "resnet50": keras.applications.resnet50,
    "densenet121": keras.applications.densenet,
    "mobilenetv3large": keras.applications.mobilenet_v3,
    "efficientnetv2b0": keras.applications.efficientnet_v2,
}
PARAMETERS = {  # without the top, of Keras's own documentation with it
    "vgg16": 14_714_688,
    "resnet50": 23_587_712,
    "densenet121": 7_037_504,
    "mobilenetv3large": 2_996_352,
    "efficientnetv2b0": 5_919_312,
}
NETWORK = NetworkConfig(blocks=(), backbone="vgg16", resize_to=SIDE, head="average")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


def made(name: str, *, top: bool = False) -> Any:
    """A network of `keras.applications` with weights drawn by the test."""
    keras.utils.set_random_seed(1)
    shape = (224, 224, 3) if top else (SIDE, SIDE, 3)
    make = getattr(keras.applications, backbones.KNOWN[name].function)
    return make(weights=None, include_top=top, input_shape=shape)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of VGG16 without its top."""
    file = tmp_path_factory.mktemp("weights") / "vgg.weights.h5"
    made("vgg16").save_weights(file)
    return file


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What Keras can download, by name; what is not there is refused."""
    files: dict[str, Path] = {}

    def get_file(name: str, origin: str, **_: Any) -> str:
        if name not in files:
            raise OSError(f"no network, and {name} is wanted")
        return str(files[name])

    monkeypatch.setattr(file_utils, "get_file", get_file)
    return files


@pytest.mark.parametrize("name", backbones.KNOWN)
def test_each_gets_pixels_as_keras_prepares_them(name: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 4, 3)).astype(np.float32)
    image = keras.Input((5, 4, 3))
    ours = keras.Model(image, keras.layers.Identity()(backbones.prepare(image, name)))
    expected = MODULES[name].preprocess_input(images.copy())
    np.testing.assert_allclose(ours(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", backbones.KNOWN)
def test_it_is_kerass_network_with_the_weights_of_the_file(name: str, tmp_path: Path) -> None:
    theirs = made(name)
    file = tmp_path / "some.weights.h5"
    theirs.save_weights(file)
    ours = backbones.build(name, str(file), (96, 96, 3), trained=3)
    assert ours.count_params() == PARAMETERS[name]
    for mine, own in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, own)
    kernels = [weight for weight in ours.trainable_weights if weight.name == "kernel"]
    assert len(kernels) == 3
    assert {w.name for w in ours.trainable_weights} <= {"kernel", "bias"}
    assert kernels[-1] is [la for la in ours.layers if hasattr(la, "kernel")][-1].kernel


def test_the_last_three_convolutions_of_vgg16_are_its_last_block(weights: Path) -> None:
    model = backbones.build("vgg16", str(weights), (32, 32, 3), trained=3)
    trained = [layer.name for layer in model.layers if layer.trainable_weights]
    assert trained == ["block5_conv1", "block5_conv2", "block5_conv3"]
    whole = backbones.build("vgg16", str(weights), (32, 32, 3), trained=20)  # it has 13
    assert sum(bool(layer.trainable_weights) for layer in whole.layers) == 13


def test_flops_are_counted_inside_a_backbone(weights: Path) -> None:
    config = NetworkConfig(**{**vars(NETWORK), "backbone_weights": str(weights)})
    whole = build_network(config, (32, 32, 3), 10)
    inside = backbones.build("vgg16", str(weights), (SIDE, SIDE, 3))
    assert count_flops(whole) == count_flops(inside) + 2 * 512 * 10
    assert whole.get_layer("vgg16").input.shape == (None, SIDE, SIDE, 3)


@pytest.fixture
def reference(weights: Path, tmp_path: Path) -> str:
    """A space of one's own, whose weights are a file."""
    lines = [
        "from search_spaces import transfer",
        "class Mine(transfer.Space):",
        "    backbone = ('vgg16',)",
        f"    weights = {{'vgg16': {str(weights)!r}}}",
        "    resize_to = (32,)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    return f"{tmp_path / 'mine.py'}:Mine"


@pytest.mark.parametrize("tuned", [0, 3])
def test_a_trial_trains_the_head_and_as_much_of_the_backbone_as_it_says(
    tuned: int, reference: str, weights: Path, tmp_path: Path
) -> None:
    digits = datasets.load("digits", train_limit=100)  # grey
    setup, events = Setup(reference, Protocol(2), tmp_path), []
    space = make_space(setup, digits)
    values = space.baseline_values("vgg16") | {"fine_tuned": tuned}
    train(
        Task(0, 1, values, 1, 2), setup, digits, lambda kind, **f: events.append({**f, "is": kind})
    )
    assert [event["is"] for event in events] == ["start", "epoch", "epoch", "done"], events[-1]
    model = keras.models.load_model(tmp_path / "trials" / "0000" / "model.keras")
    before = backbones.build("vgg16", str(weights), (32, 32, 3)).get_weights()
    after = model.get_layer("vgg16").get_weights()
    changed = [not np.array_equal(*pair) for pair in zip(before, after, strict=True)]
    assert changed == [False] * (26 - 2 * tuned) + [True] * 2 * tuned  # kernels and biases
    trained = backbones.build("vgg16", str(weights), (32, 32, 3), trained=tuned)
    inside = sum(weight.numpy().size for weight in trained.trainable_weights)
    assert events[-1]["trainable_parameters"] == 512 * 10 + 10 + inside
    predicted = model.predict(digits.validation.images, verbose=0).argmax(axis=1)
    assert np.mean(predicted == digits.validation.labels) == pytest.approx(events[-1]["score"])


def test_a_sweep_of_it_is_searched_registered_and_predicted_with(
    reference: str, tmp_path: Path, digits_photo: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        f"data = 'digits'\nsearch_space = {reference!r}\ntrials = 2\n[training]\nepochs = 1\n"
    )
    options = ["--train-limit", "60", "--workers", "0", "--mlruns", str(tmp_path / "mlruns")]
    done = CliRunner().invoke(sweep.main, [str(tmp_path / "mine.toml"), *options])
    assert done.exit_code == 0, done.output
    assert "baseline vgg16" in done.output
    said = CliRunner().invoke(predict.main, ["mine", str(digits_photo), *options[-2:]])
    assert said.exit_code == 0, said.output
    assert said.stdout.count("%") == 3


def test_weights_that_are_not_there_end_a_sweep_before_it_trains(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    definition = ["transfer", "--set", "data=digits", "--train-limit", "100", "--workers", "0"]
    mlruns = tmp_path / "mlruns"
    done = CliRunner().invoke(sweep.main, [*definition, "--mlruns", str(mlruns)])
    assert isinstance(done.exception, ModelError)
    assert re.search(
        r"densenet121: expected its weights without the top in Keras's cache, .*models, or a "
        r"network .*; received no network, and densenet121.*notop.h5 is wanted. Put",
        str(done.exception),
    )
    assert not list(mlruns.glob("sweeps/*"))


@pytest.mark.parametrize(
    ("text", "said"), [("", "received no such file"), ("HDF", "received .*[Nn]ot .*HDF|signature")]
)
def test_a_file_that_holds_no_weights_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "some.weights.h5"
    if text:
        file.write_text(text)
    with pytest.raises(ModelError, match=rf"vgg16: expected its weights .* in {file}; {said}"):
        backbones.build("vgg16", str(file), (32, 32, 3))


def test_weights_of_another_network_are_refused_where_keras_would_only_warn(weights: Path) -> None:
    with pytest.raises(ModelError, match=r"vgg.weights.h5; received those of another network\. N"):
        backbones.build("mobilenetv3large", str(weights), (32, 32, 3))


# predict


@pytest.fixture
def digits_photo(tmp_path: Path) -> Path:
    image = datasets.load("digits", train_limit=100).validation.images[0]
    Image.fromarray(image[..., 0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_is_classified_as_keras_does_with_its_names(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    whole = made("mobilenetv3large", top=True)
    shelf["weights_mobilenet_v3_large_224_1.0_float.h5"] = tmp_path / "whole.weights.h5"
    whole.save_weights(tmp_path / "whole.weights.h5")
    names = {str(i): [f"n{i:08}", "crane"] for i in range(1000)}  # as two of ImageNet's are
    shelf["imagenet_class_index.json"] = tmp_path / "names.json"
    (tmp_path / "names.json").write_text(json.dumps(names))
    pixels = np.random.default_rng(1).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")

    arguments = ["mobilenetv3large", str(tmp_path / "photo.png"), "--json"]
    done = CliRunner().invoke(predict.main, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"] == "mobilenetv3large, trained on ImageNet"
    prepared = keras.applications.mobilenet_v3.preprocess_input(pixels[None].astype(np.float32))
    [theirs] = keras.applications.mobilenet_v3.decode_predictions(
        whole.predict(prepared, verbose=0), top=3
    )
    assert found["photos"][0]["classes"] == [
        {"class": label, "probability": pytest.approx(float(share), rel=1e-4)}
        for _, label, share in theirs
    ]


def test_without_weights_or_a_network_predict_says_what_is_missing(
    shelf: dict[str, Path], digits_photo: Path
) -> None:
    done = CliRunner().invoke(predict.main, ["vgg16", str(digits_photo)])
    assert isinstance(done.exception, ModelError)
    said = str(done.exception)
    assert "vgg16: expected its weights in Keras's cache" in said
    assert "no network, and vgg16_weights_tf_dim_ordering_tf_kernels.h5 is wanted" in said
