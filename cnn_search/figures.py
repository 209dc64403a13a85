"""Pictures of a trial: its curves, grids of images and predictions, the diagram of its network.

Drawn without pyplot, so that any thread may draw. Colours are told apart without colour vision.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
        axes.plot(epochs, [curve[e][metric] for e in epochs], "--o", color=ORANGE, ms=3)
        axes.plot(epochs, [curve[e][f"val_{metric}"] for e in epochs], "-o", color=BLUE, ms=3)
        axes.set(xlabel="epoch", ylabel="cross-entropy" if metric == "loss" else metric)
        axes.legend(["training", "validation"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    gap_y, gap_x = height * 0.55, width * 0.25
    figure = Figure(figsize=(1.5 * columns, 1.5 * rows * 1.25), layout="constrained")
    axes = figure.subplots()
    # one set of axes for all: 25 sets take five times as long
    for index in range(n):
        x, y = index % columns * (width + gap_x), index // columns * (height + gap_y)
        picture = images[index] if channels == 3 else images[index, :, :, 0]
        box = (x, x + width, y + height, y)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=box, interpolation="nearest")
        right = good is None or good[index]
        axes.text(
            x + width / 2,
            y + height * 1.05,
            captions[index] if right else f"✗ {captions[index]}",
            ha="center",
            va="top",
            fontsize=8,
            color=BLUE if good is not None and right else "black" if right else ORANGE,
        )
    axes.set(xlim=(-gap_x, columns * (width + gap_x)), ylim=(rows * (height + gap_y), -gap_y / 2))
    axes.set_axis_off()
    return figure


def draw_samples(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Draw images with their class names."""
    return draw_grid(images, [class_names[label] for label in labels])


def draw_predictions(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> Figure:
    """Draw images with predicted class, its probability `(n, classes)`, and the true class."""
    predicted = probabilities.argmax(axis=1)
    captions = [
        f"{class_names[p]} {row[p]:.0%}\ntrue: {class_names[t]}"
        for p, t, row in zip(predicted, labels, probabilities, strict=True)
    ]
    return draw_grid(images, captions, list(predicted == labels))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, dpi=100)
    return path


def render_diagram(dot: Path) -> list[Path]:
    """Turn a DOT file into PNG and SVG beside it; nothing where Graphviz is not installed."""
    if shutil.which("dot") is None:
        return []
    made = [dot.with_suffix(".png"), dot.with_suffix(".svg")]
    command: list[Any] = ["dot"]
    for path in made:
        command += [f"-T{path.suffix[1:]}", "-o", path]
    subprocess.run([*command, dot], check=True, capture_output=True)
    return made
