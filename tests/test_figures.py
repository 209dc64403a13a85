"""Tests of `cnn_search.figures`: pictures drawn, saved, and looked at pixel by pixel."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from cnn_search import datasets, figures

CURVE = {
    epoch: {
        **{"accuracy": 1 - 0.5 / epoch, "val_accuracy": 0.9 - 0.5 / epoch},
        **{"loss": 2 / epoch, "val_loss": 2.2 / epoch},
    }
    for epoch in range(1, 6)
}


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def shown() -> datasets.Part:
    return datasets.load("digits", train_limit=100).train


def coloured(images: Any) -> Any:
    """Gives grey images three unlike channels."""
    return np.concatenate([images, 255 - images, images // 2], axis=-1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def pixels_of(path: Path) -> Any:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def inside(figure: Figure) -> bool:
    """Tells whether every text lies on the paper."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_curves_show_training_against_validation(tmp_path: Path, epochs: int) -> None:
    curve = {epoch: CURVE[epoch] for epoch in reversed(range(1, epochs + 1))}
    figure = figures.draw_curves(curve, "trial 3")
    path = figures.save(figure, tmp_path / "curves.png")
    assert pixels_of(path).shape == (360, 900, 3)
    for axes, metric in zip(figure.axes, ("accuracy", "loss"), strict=True):
        training, validation = axes.lines
        assert list(training.get_xdata()) == list(range(1, epochs + 1))
        assert list(training.get_ydata()) == [CURVE[e][metric] for e in range(1, epochs + 1)]
        assert list(validation.get_ydata()) == [
            CURVE[e][f"val_{metric}"] for e in range(1, epochs + 1)
        ]
        # told apart without colours
        assert training.get_linestyle() != validation.get_linestyle()
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
        low, high = axes.get_xlim()
        assert all(tick == int(tick) for tick in axes.get_xticks() if low <= tick <= high)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 25])
@pytest.mark.parametrize("channels", [1, 3])
def test_grids_hold_every_image_under_its_name(
    shown: datasets.Part, tmp_path: Path, n: int, channels: int
) -> None:
    images = shown.images[:n] if channels == 1 else coloured(shown.images[:n])
    names = ["T-shirt/top", "Ankle boot", *"cdefghij"]
    figure = figures.draw_samples(images, shown.labels[:n], names)
    assert texts(figure) == [names[label] for label in shown.labels[:n]]
    assert len(figure.axes[0].images) == n
    for drawn, image in zip(figure.axes[0].images, images, strict=True):
        assert np.array_equal(np.squeeze(drawn.get_array()), np.squeeze(image))
    assert inside(figure)
    pixels = pixels_of(figures.save(figure, tmp_path / "grid.png"))
    ink = np.argwhere((pixels < 250).any(-1))
    assert ink.min(0).max() <= 40  # no broad margin above or left
    spread = (pixels.max(-1) - pixels.min(-1)).max()
    assert spread > 100 if channels == 3 else spread == 0


@pytest.mark.parametrize("shape", [(8, 64, 1), (64, 8, 3), (4, 4, 1)])
def test_oblong_images_keep_their_aspect(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    figure = figures.draw_samples(np.zeros((5, *shape), np.uint8), np.zeros(5, int), ["zero"])
    figures.save(figure, tmp_path / "grid.png")
    for drawn in figure.axes[0].images:
        box = drawn.get_window_extent()
        assert abs(box.height / box.width - shape[0] / shape[1]) < 0.01
    assert max(figure.get_size_inches()) < 8


def test_wrong_predictions_have_a_cross_and_not_a_colour_alone(
    shown: datasets.Part, tmp_path: Path
) -> None:
    labels = shown.labels[:6]
    probabilities = np.full((6, 10), 0.01, np.float32)
    predicted = labels.copy()
    predicted[[1, 4]] = (labels[[1, 4]] + 1) % 10
    probabilities[range(6), predicted] = 0.91
    names = ["T-shirt/top", *"bcdefghij"]
    figure = figures.draw_predictions(shown.images[:6], labels, probabilities, names)
    for index, text in enumerate(figure.axes[0].texts):
        wrong = index in (1, 4)
        said = f"{names[predicted[index]]} 91%\ntrue: {names[labels[index]]}"
        assert text.get_text() == (f"✗ {said}" if wrong else said)
        assert to_rgb(text.get_color()) == to_rgb(figures.ORANGE if wrong else figures.BLUE)
    assert inside(figure)
    figures.save(figure, tmp_path / "predictions.png")


def test_class_names_are_no_formulas_and_may_be_long(shown: datasets.Part, tmp_path: Path) -> None:
    # "$1 bill_$" stopped the follower: matplotlib took it for a formula
    names = ["$1 bill_$", "a_b^c", "sealyham terrier of the north", *"defghij"]
    labels = np.array([0, 1, 2])
    figure = figures.draw_predictions(
        shown.images[:3], labels, np.eye(10, dtype=np.float32)[:3], names
    )
    figures.save(figure, tmp_path / "predictions.png")
    assert texts(figure) == [
        "$1 bill_$ 100%\ntrue: $1 bill_$",
        "a_b^c 100%\ntrue: a_b^c",
        "sealyham terrie… 100%\ntrue: sealyham terrie…",
    ]
    assert inside(figure)


def test_a_trial_s_folder_becomes_its_pictures(shown: datasets.Part, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "validation_predictions.npz",
        images=shown.images[:4],
        labels=shown.labels[:4],
        probabilities=np.eye(10, dtype=np.float32)[shown.labels[:4]],
    )
    (tmp_path / "diagram.dot").write_text("digraph { no end")
    (tmp_path / "summary.txt").write_text("Total params: 3")
    files, missing = figures.draw_trial(tmp_path, CURVE, "trial 3", list("0123456789"))
    assert [file.name for file in files] == [
        *("summary.txt", "curves.png", "validation_predictions.png")
    ]
    assert all(file.is_file() for file in files)
    assert missing[0] == "configuration.json is not on the disk"
    assert len(missing) == 2
    assert "dot" in missing[1]  # what Graphviz could not read, or that it is not there


def test_figures_are_drawn_in_a_thread_without_pyplot(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, threading
import numpy as np
from cnn_search import figures
figure = []
def draw():
    figure.append(figures.draw_samples(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, int), ["a"]))
    figures.save(figure[0], pathlib.Path({str(tmp_path / "grid.png")!r}))
thread = threading.Thread(target=draw)
thread.start()
thread.join()
heavy = {{"matplotlib.pyplot", "tkinter", "keras", "tensorflow", "mlflow"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
    assert pixels_of(tmp_path / "grid.png").min() == 0
