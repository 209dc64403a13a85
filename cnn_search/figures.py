"""Pictures of a trial: its curves, grids of images and predictions, the diagram of its network.

Drawn without pyplot, so that any thread may draw. Colours are told apart without colour vision.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnn_search.errors import first_line

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette


def draw_curves(curve: Mapping[int, Mapping[str, float]], title: str) -> Figure:
    """Draw accuracy and loss of training against validation, by epoch.

    Args:
        curve: "accuracy", "val_accuracy", "loss" and "val_loss" of each epoch, counted from 1.
        title: What stands above.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    epochs = sorted(curve)
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for name, label, form, colour in (
            (metric, "training", "--o", ORANGE),
            (f"val_{metric}", "validation", "-o", BLUE),
        ):
            known = [e for e in epochs if name in curve[e]]  # a hypermodel may not measure it
            axes.plot(known, [curve[e][name] for e in known], form, color=colour, ms=3, label=label)
        axes.set(xlabel="epoch", ylabel="cross-entropy" if metric == "loss" else metric)
        axes.legend()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    return figure


def draw_grid(
    images: npt.NDArray[np.uint8], captions: Sequence[str], good: Sequence[bool] | None = None
) -> Figure:
    """Draw images in a square grid, a caption under each.

    Args:
        images: uint8 `(n, height, width, channels)`, 1 or 3 channels.
        captions: `n` texts of one or two lines.
        good: Whether each is right; a wrong one has an orange caption and a cross.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    # all in inches
    side, line = 1.2 / max(height, width), 0.16
    tall, wide = side * height, side * width
    lines = max(caption.count("\n") + 1 for caption in captions)
    cell_x, cell_y = 1.6, tall + lines * line + 0.2
    figure = Figure(figsize=(columns * cell_x, rows * cell_y + 0.1))
    # one set of axes for all: 25 sets take five times as long
    axes = figure.add_axes((0, 0, 1, 1))
    for index in range(n):
        middle, top = (index % columns + 0.5) * cell_x, index // columns * cell_y + 0.1
        picture = images[index] if channels == 3 else images[index, :, :, 0]
        box = (middle - wide / 2, middle + wide / 2, top + tall, top)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=box, interpolation="nearest")
        right = good is None or good[index]
        axes.text(
            middle,
            top + tall + 0.05,
            captions[index] if right else f"✗ {captions[index]}",
            ha="center",
            va="top",
            fontsize=8,
            color=BLUE if good is not None and right else "black" if right else ORANGE,
            parse_math=False,  # a class may be called "$1 bill"
        )
    axes.set(xlim=(0, columns * cell_x), ylim=(rows * cell_y + 0.1, 0))
    axes.set_axis_off()
    return figure


def draw_samples(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Draw images with their class names."""
    return draw_grid(images, [_short(class_names[label]) for label in labels])


def draw_predictions(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> Figure:
    """Draw images with predicted class, its probability `(n, classes)`, and the true class."""
    predicted = probabilities.argmax(axis=1)
    captions = [
        f"{_short(class_names[p])} {row[p]:.0%}\ntrue: {_short(class_names[t])}"
        for p, t, row in zip(predicted, labels, probabilities, strict=True)
    ]
    return draw_grid(images, captions, list(predicted == labels))


def draw_explanations(
    images: npt.NDArray[np.uint8], parts: Sequence[npt.NDArray[np.float32]], captions: Sequence[str]
) -> Figure:
    """Draw each image, and beside it what its pixels add to (blue) and take from (orange) a class.

    Args:
        images: uint8 `(n, height, width, channels)`, 1 or 3 channels.
        parts: Of each image, float32 `(height, width)`; the largest gets the full colour.
        captions: `n` texts.
    """
    colours = LinearSegmentedColormap.from_list("parts", [ORANGE, "white", BLUE])
    figure = Figure(figsize=(6.4, 3.2 * len(images)), layout="constrained")
    rows = figure.subplots(len(images), 2, squeeze=False)
    for (left, right), image, part, caption in zip(rows, images, parts, captions, strict=True):
        left.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        left.set_title(caption, parse_math=False)
        most = float(np.abs(part).max()) or 1.0
        drawn = right.imshow(part, cmap=colours, vmin=-most, vmax=most)
        bar = figure.colorbar(drawn, ax=right, shrink=0.8)
        bar.set_label("added to the probability")
        left.set_axis_off()
        right.set_axis_off()
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def draw_trial(
    folder: Path, curve: Mapping[int, Mapping[str, float]], title: str, class_names: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Draw all that a trial left behind in its folder.

    Returns:
        The files of the folder that are worth showing, and a line for each that cannot be had.
    """
    drawings: list[Callable[[], list[Path]]] = [
        lambda: [save(draw_curves(curve, title), folder / "curves.png")],
        lambda: [draw_saved(folder, "validation", class_names)],
        lambda: render_diagram(folder / "diagram.dot"),
    ]
    wanted = [folder / "configuration.json", folder / "summary.txt"]
    files = [file for file in wanted if file.exists()]
    missing = [f"{file.name} is not on the disk" for file in wanted if not file.exists()]
    for draw in drawings:
        try:
            files += draw()
        except Exception as error:  # one picture is not worth the others
            missing.append(first_line(error))
    return files, missing


def draw_saved(folder: Path, part: str, class_names: Sequence[str]) -> Path:
    """Draw the predictions of "validation" or "test" images that a trial left in its folder."""
    with np.load(folder / f"{part}_predictions.npz") as saved:
        arrays = saved["images"], saved["labels"], saved["probabilities"]
    return save(draw_predictions(*arrays, class_names), folder / f"{part}_predictions.png")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    with warnings.catch_warnings():
        # a class name in a script that no font here has: a box in the picture, no line for each
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=100)
    return path


def render_diagram(dot: Path) -> list[Path]:
    """Turn a DOT file into PNG and SVG beside it, and return their paths.

    Raises:
        FileNotFoundError: Graphviz is not installed.
        subprocess.CalledProcessError: it does not understand the file.
    """
    if shutil.which("dot") is None:
        raise FileNotFoundError("no diagram: Graphviz (the command dot) is not installed")
    made = [dot.with_suffix(".png"), dot.with_suffix(".svg")]
    command: list[Any] = ["dot"]
    for path in made:
        command += [f"-T{path.suffix[1:]}", "-o", path]
    subprocess.run([*command, dot], check=True, capture_output=True)
    return made
