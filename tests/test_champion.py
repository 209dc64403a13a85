"""Tests of what a champion is used for: predict, explain, export, serve; of a real, tiny sweep."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import test_tracking as tiny
from click.testing import CliRunner, Result
from PIL import Image

from cnn_search import (
    champion,
    datasets,
    explanation,
    export,
    formats,
    models,
    predict,
    servers,
    store,
)
from cnn_search.champion import Champion
from cnn_search.errors import DefinitionError, ModelError, TrackingError
from cnn_search.network import BlockConfig, NetworkConfig, averaged, build_network

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")

GELU = NetworkConfig(
    (BlockConfig(8, normalisation="batch", pooling="max"), BlockConfig(16)),
    activation="gelu",
    whitening=True,
    head="average",
    views=6,
)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


@pytest.fixture(scope="session")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sweep(tmp_path_factory)


@pytest.fixture(scope="module")
def digits() -> Any:
    return datasets.load("digits", train_limit=300).validation.images[:8]


@pytest.fixture(scope="module")
def chosen(mlruns: Path) -> Champion:
    return champion.read("digits", mlruns)


@pytest.fixture
def rich_model() -> Champion:
    """A model with all that spaces have: whitening, normalisation, GELU, six views."""
    model = averaged(build_network(GELU, (16, 16, 3), 4, seed=1), GELU.views)
    return Champion("rich", model, ("a", "b", "c", "d"))


def photo(image: Any, path: Path, **options: Any) -> Path:
    Image.fromarray(np.squeeze(image)).save(path, **options)
    return path


def told(mlruns: Path, *arguments: object, **options: Any) -> list[dict[str, float]]:
    done = run(mlruns, *arguments, "--json", "--top", 10, **options)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = [found["classes"] for found in json.loads(done.stdout)["photos"]]
    return [{row["class"]: row["probability"] for row in classes} for classes in rows]


def run(mlruns: Path, *arguments: object, **options: Any) -> Result:
    given = [str(a) for a in arguments]
    return CliRunner().invoke(predict.main, [*given, "--mlruns", str(mlruns)], **options)


# Photos


def test_photos_of_the_models_size_get_the_models_own_probabilities(
    mlruns: Path, chosen: Champion, digits: Any, tmp_path: Path
) -> None:
    files = [photo(image, tmp_path / f"{i}.png") for i, image in enumerate(digits)]
    expected = chosen.model.predict(digits, verbose=0)
    for row, classes in zip(expected, told(mlruns, "digits", *files), strict=True):
        assert list(classes.values()) == sorted(classes.values(), reverse=True)
        assert [classes[name] for name in chosen.class_names] == [float(p) for p in row]


def test_the_same_photo_twice_is_told_twice(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    file = photo(digits[0], tmp_path / "0.png")
    first, second = told(mlruns, "digits", file, file)
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_a_photo_of_any_mode_is_read(mode: str, digits: Any, tmp_path: Path, mlruns: Path) -> None:
    image = digits[0] if mode != "1" else (digits[0] > 127).astype(np.uint8) * 255
    plain = photo(image, tmp_path / "plain.png")
    other = tmp_path / "other.png"
    Image.fromarray(np.squeeze(image)).convert(mode).save(other)
    first, second = told(mlruns, "digits", plain, other)
    assert first == pytest.approx(second, abs=1e-6)  # the place in a batch may tell in the last bit


def test_a_photo_on_its_side_is_turned_upright(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    large = np.kron(digits[0].squeeze(), np.ones((4, 4), np.uint8))
    upright = photo(large, tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right by a quarter
    lying = photo(np.rot90(large), tmp_path / "lying.png", exif=exif)
    # one by one: the place in a batch may tell in the last bit
    assert told(mlruns, "digits", upright) == told(mlruns, "digits", lying)


def test_a_photo_from_standard_input(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    file = photo(digits[1], tmp_path / "1.png")
    assert told(mlruns, "digits", "-", input=file.read_bytes()) == told(mlruns, "digits", file)


def test_a_line_a_photo_with_the_first_classes(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    file = photo(digits[0], tmp_path / "a photo ü.png")
    (classes,) = told(mlruns, "digits", file)
    best = list(classes.items())[:2]
    done = run(mlruns, "digits", file, "--top", 2)
    assert done.output == f"{file}: {', '.join(f'{n} {p:.1%}' for n, p in best)}\n"


def test_photos_that_cannot_be_read_are_named(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    good = photo(digits[0], tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    done = run(mlruns, "digits", good, tmp_path / "bad.png", tmp_path / "deep.png")
    assert done.stdout == ""
    said = str(done.exception)
    assert "2 that cannot be read" in said
    assert "bad.png (cannot identify" in said
    assert "deep.png (Pillow's mode I" in said


def test_a_pulled_file_predicts_what_the_registered_model_does(
    mlruns: Path, digits: Any, tmp_path: Path
) -> None:
    models.pull_model(store.open_store(mlruns, "digits"), "digits", tmp_path)
    file = photo(digits[2], tmp_path / "2.png")
    assert told(mlruns, tmp_path / "digits.keras", file) == told(mlruns, "digits", file)


@pytest.mark.parametrize("damage", ["no model", "no classes", "too few classes", "not JSON"])
def test_a_file_that_is_no_champion_is_refused(mlruns: Path, tmp_path: Path, damage: str) -> None:
    _, (model, names, _) = models.pull_model(store.open_store(mlruns, "digits"), "digits", tmp_path)
    if damage == "no model":
        model.write_bytes(b"PK nothing")
    elif damage == "no classes":
        names.unlink()
    else:
        names.write_text('["zero"]' if damage == "too few classes" else "{")
    with pytest.raises(ModelError, match=r"expected a model as `registry pull` writes it, digits"):
        champion.read(str(model), mlruns)


# Explanations


def test_what_the_pixels_add_sums_up_to_the_probability(
    mlruns: Path, chosen: Champion, digits: Any
) -> None:
    black, shown = chosen.model.predict(np.stack([0 * digits[0], digits[0]]), verbose=0)
    index = int(shown.argmax())
    parts = explanation.attributions(chosen.model, digits[0], index)
    assert parts.shape == digits.shape[1:3]
    assert parts.sum() == pytest.approx(shown[index] - black[index], abs=0.01)
    assert np.abs(parts).max() > 0
    # black pixels are as they were in the black image: they add nothing
    assert not parts[digits[0][..., 0] == 0].any()


def test_a_model_in_a_model_is_explained_with_what_is_around_it() -> None:
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3)])
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Flatten()(inner(keras.layers.Rescaling(1 / 255)(image)))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))
    photo = np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8)
    black, shown = model.predict(np.stack([0 * photo, photo]), verbose=0)
    parts = explanation.attributions(model, photo, 2)
    assert parts.shape == (4, 4)
    assert parts.sum() == pytest.approx(shown[2] - black[2], abs=0.01)


def test_a_model_of_several_views_is_explained_by_the_image_itself(rich_model: Champion) -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    single = next(one for one in rich_model.model.layers if isinstance(one, keras.Model))
    black, shown = single.predict(np.stack([0 * image, image]), verbose=0)
    parts = explanation.attributions(rich_model.model, image, 2, steps=256)
    assert parts.sum() == pytest.approx(shown[2] - black[2], abs=0.01)


def test_explain_draws_every_photo(mlruns: Path, digits: Any, tmp_path: Path) -> None:
    files = [photo(image, tmp_path / f"{i}.png") for i, image in enumerate(digits[:2])]
    drawn = tmp_path / "why.png"
    done = run(mlruns, "digits", *files, "--explain", drawn)
    assert done.exit_code == 0
    assert "blue speaks for the class" in done.stderr
    with Image.open(drawn) as image:
        assert image.size == (640, 640)
        assert len(np.unique(np.asarray(image.convert("RGB")))) > 100


# Other formats


@pytest.mark.parametrize("kind", list(formats.FORMATS))
def test_a_format_predicts_real_images_as_keras_does(
    kind: str, mlruns: Path, digits: Any, chosen: Champion, tmp_path: Path
) -> None:
    target = tmp_path / f"digits{export.ENDINGS[kind]}"
    given = ["digits", "--format", kind, "--to", str(target), "--mlruns", str(mlruns), "--json"]
    done = CliRunner().invoke(export.main, given, catch_exceptions=False)
    assert json.loads(done.stdout)["path"] == str(target)
    received = np.asarray(formats.FORMATS[kind].run(target, digits))
    assert np.abs(received - chosen.model.predict(digits, verbose=0)).max() < 1e-5
    assert json.loads((tmp_path / "digits.classes.json").read_text()) == list(chosen.class_names)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "digits.classes.json"}


@pytest.mark.parametrize("kind", list(formats.FORMATS))
def test_every_format_takes_all_that_spaces_have(
    kind: str, rich_model: Champion, tmp_path: Path
) -> None:
    written = formats.write(rich_model, kind, tmp_path / f"rich{export.ENDINGS[kind]}")
    assert written.difference < 1e-5


def test_a_file_that_predicts_otherwise_is_not_written(
    rich_model: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "rich.tflite"
    target.write_text("what was there")
    other = formats.FORMATS["litert"]._replace(run=lambda path, images: np.full((16, 4), 0.25))
    monkeypatch.setitem(formats.FORMATS, "litert", other)
    with pytest.raises(ModelError, match="received probabilities that differ by 0"):
        formats.write(rich_model, "litert", target)
    assert [path.name for path in tmp_path.iterdir()] == ["rich.tflite"]
    assert target.read_text() == "what was there"


def test_a_folder_of_something_else_is_not_replaced(rich_model: Champion, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("mine")
    for kind in formats.FORMATS:
        with pytest.raises(ModelError, match="received a folder of something else"):
            formats.write(rich_model, kind, photos)
    assert (photos / "cat.png").read_text() == "mine"
    earlier = tmp_path / "rich.savedmodel"
    for _ in range(2):  # its own is
        assert formats.write(rich_model, "savedmodel", earlier).path == earlier
    with pytest.raises(ModelError, match="received"):
        formats.write(rich_model, "litert", Path("."))


@pytest.mark.parametrize("target", ["nowhere/why.png", "why.jpg", "why"])
def test_where_nothing_can_be_drawn_is_said_first(
    mlruns: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "x.png").write_text("not looked at")
    done = run(mlruns, "digits", tmp_path / "x.png", "--explain", tmp_path / target)
    assert done.exit_code == 2
    assert "--explain: expected a .png in a folder" in done.output


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match="tf2onnx, onnx, onnxruntime for onnx; not installed"):
        formats.check("onnx")
    formats.check("savedmodel")


# Behind HTTP


@pytest.fixture(scope="module")
def served(mlruns: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Serves the champion by the command itself; gives what that printed."""
    log = tmp_path_factory.mktemp("served") / "out.txt"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cnn_search.serve", "digits", "--mlruns", str(mlruns)],
            stdout=out,
            stderr=out,
            env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        )
        until = time.monotonic() + 240
        while "The classes" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        yield log.read_text().splitlines()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert log.read_text().endswith("ended\n")
    assert psutil.wait_procs(children, timeout=10)[1] == []  # nothing is left behind


def post(address: str, body: bytes, kind: str = "application/json") -> Any:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_example_that_serve_prints_is_answered(served: list[str], chosen: Champion) -> None:
    address = served[1].split()[0]
    body = Path(served[2].split("@")[1]).read_bytes()
    assert served[2].startswith(f"  curl {address} ")
    image = np.array(json.loads(body)["inputs"], np.uint8)
    expected = chosen.model.predict(image, verbose=0)
    assert post(address, body)["predictions"] == pytest.approx(expected, abs=1e-6)
    assert served[3].endswith(json.dumps(list(chosen.class_names)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"{}",
        b'{"inputs": "abc"}',
        b'{"inputs": [[1, 2], [3]]}',
        b'{"inputs": [[[[300]]]]}',
        b'{"inputs": [[[[0.5]]]]}',
    ],
)
def test_a_bad_body_is_refused_and_the_next_one_answered(served: list[str], body: bytes) -> None:
    address = served[1].split()[0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, body)
    assert refused.value.code == 400
    assert post(address, Path(served[2].split("@")[1]).read_bytes())["predictions"]


@pytest.mark.slow
def test_nothing_but_loopback_is_listened_on(served: list[str]) -> None:
    port = int(served[1].split()[0].split(":")[2].split("/")[0])
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}


def test_a_port_that_is_taken_is_refused_before_anything_starts(mlruns: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(TrackingError, match=f"received {port}: Address already in use"),
            servers.running(["models", "serve"], port, "/ping", ""),
        ):
            raise AssertionError("it started")


def test_a_server_that_ends_by_itself_says_its_last_words() -> None:
    with (
        pytest.raises(TrackingError, match="it said Error: No such command 'nonsense'"),
        servers.running(["nonsense"], servers.free_port(), "/", ""),
    ):
        raise AssertionError("it started")
