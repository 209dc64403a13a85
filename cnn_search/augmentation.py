"""Augmentation and feeding: random shift, zoom, flip, rotation, crop and cutout of whole batches.

What is drawn for an image is a function of (seed, epoch, row), so that a trial killed in the middle
goes on as if nothing had happened. Every geometric change of an image is one affine map, applied
once: an image is interpolated once, as Keras's old ImageDataGenerator did, which the tutorials use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from cnn_search import backend

Fill = Literal["nearest", "reflect", "constant"]


@dataclass(frozen=True)
class AugmentationConfig:
    """What may happen to a training image; 0 or False switches a kind off.

    Attributes:
        shift: Largest shift along each axis, as a share of the side; drawn continuously.
        zoom: Each axis on its own is scaled by a factor drawn from [1 - zoom, 1 + zoom].
        flip: Mirror left and right with probability 1/2.
        flip_alternates: With `flip`, mirror each image in every other epoch instead, from the
            first or from the second on with probability 1/2 (Jordan 2024, arXiv:2404.00498).
        rotation: Largest rotation either way, in degrees.
        crop: Largest shift along each axis in whole pixels; the same as padding every side by
            `crop` and cutting a random window.
        cutout: Side in pixels of a square, at a random place, painted in the image's mean colour
            (DeVries and Taylor 2017, arXiv:1708.04552).
        fill: What stands outside the image: its nearest pixel, its reflection (`dcba|abcd|dcba`),
            or zeros.
    """

    shift: float = 0.0
    zoom: float = 0.0
    flip: bool = False
    flip_alternates: bool = False
    rotation: float = 0.0
    crop: int = 0
    cutout: int = 0
    fill: Fill = "nearest"

    @property
    def moves(self) -> bool:
        """Whether anything but cutout is on."""
        return bool(self.shift or self.zoom or self.flip or self.rotation or self.crop)


@dataclass(frozen=True)
class Draws:
    """What was drawn for `n` images in one epoch.

    Attributes:
        transforms: float32 `(n, 8)`, rows of `keras.ops.image.affine_transform`: the map from a
            place in the new image to a place in the old one; None if nothing moves.
        holes: int64 `(n, 2)`, the middle (row, column) of each image's cutout; None without cutout.
    """

    transforms: npt.NDArray[np.float32] | None
    holes: npt.NDArray[np.int64] | None


def draw(
    config: AugmentationConfig,
    n: int,
    shape: tuple[int, int, int],
    rng: np.random.Generator,
    turned: npt.NDArray[np.bool_] | None = None,
) -> Draws:
    """Draw what happens to each of `n` images of `shape` (height, width, channels).

    Which of them are mirrored is not drawn but `turned`, if that is given.

    Every kind draws its numbers whether it is on or not, so that switching one kind off leaves what
    the others draw as it was.
    """
    height, width, _ = shape
    shift = rng.uniform(-1, 1, (n, 2)) * config.shift * (height, width)
    zoom = 1 + rng.uniform(-1, 1, (n, 2)) * config.zoom
    drawn = rng.random(n) < 0.5
    mirror = np.where((drawn if turned is None else turned) & config.flip, -1.0, 1.0)
    angle = np.deg2rad(rng.uniform(-1, 1, n) * config.rotation)
    holes = rng.integers(0, (height, width), (n, 2))
    # the last, since how many random bits it takes depends on how wide it is
    window = rng.integers(-config.crop, config.crop, (n, 2), endpoint=True)
    transforms = None
    if config.moves:
        # old = centre + R(angle) (zoom * mirror * (new - centre) + shift), coordinates (x, y)
        move = shift + window
        cos, sin = np.cos(angle), np.sin(angle)
        scale_x, scale_y = zoom[:, 1] * mirror, zoom[:, 0]
        x, y = (width - 1) / 2, (height - 1) / 2
        a0, a1, b0, b1 = cos * scale_x, -sin * scale_y, sin * scale_x, cos * scale_y
        a2 = x + cos * move[:, 1] - sin * move[:, 0] - a0 * x - a1 * y
        b2 = y + sin * move[:, 1] + cos * move[:, 0] - b0 * x - b1 * y
        zeros = np.zeros(n)
        transforms = np.stack([a0, a1, a2, b0, b1, b2, zeros, zeros], 1).astype(np.float32)
    return Draws(transforms, holes if config.cutout else None)


def augment(
    config: AugmentationConfig,
    images: npt.NDArray[np.uint8],
    draws: Draws,
    rows: npt.NDArray[np.int64],
) -> Any:
    """Return uint8 `images` `(b, height, width, channels)`, changed as drawn for their `rows`.

    As NumPy's arrays, or the backend's, where it compiles what happens to them.
    """
    if draws.transforms is not None:
        move = backend.compiled(_turn if config.rotation else _slide, "fill")
        images = move(images, draws.transforms[rows], fill=config.fill)
    if draws.holes is not None:
        images = backend.compiled(_cut, "side")(images, draws.holes[rows], side=config.cutout)
    return images


def _turn(images: Any, transforms: Any, fill: Fill) -> Any:
    """Apply any affine map."""
    moved = ops.image.affine_transform(
        ops.cast(images, "float32"), transforms, interpolation="bilinear", fill_mode=fill
    )
    return ops.cast(ops.round(moved), "uint8")


def _slide(images: Any, transforms: Any, fill: Fill) -> Any:
    """Apply a map without rotation, one axis after the other: half the work of `_turn`."""
    b, height, width, channels = images.shape
    lines = images.swapaxes(1, 2).reshape(b * width, height * channels)
    lines = _interpolate(lines, transforms[:, 0], transforms[:, 2], width, fill)
    lines = lines.reshape(b, width, height, channels).swapaxes(1, 2).reshape(b * height, -1)
    lines = _interpolate(lines, transforms[:, 4], transforms[:, 5], height, fill)
    return lines.round().astype(images.dtype).reshape(images.shape)


def _interpolate(lines: Any, scale: Any, move: Any, n: int, fill: Fill) -> Any:
    """Return the `n` lines of each image, at `scale * k + move` of the old ones for each k."""
    xp = lines.__array_namespace__()
    at = scale[:, None] * xp.arange(n, dtype=xp.float32) + move[:, None]
    if fill == "reflect":
        at = at % (2 * n)
        at = xp.minimum(at, 2 * n - 1 - at)
    if fill != "constant":
        at = at.clip(0, n - 1)
    before = xp.floor(at)
    share = at - before

    def part(place: Any, weight: Any) -> Any:
        weight = xp.where((place >= 0) & (place < n), weight, 0)
        rows = n * xp.arange(len(scale))[:, None] + place.clip(0, n - 1).astype(int)
        return xp.take(lines, rows.reshape(-1), axis=0) * weight.reshape(-1, 1)

    return part(before, 1 - share) + part(before + 1, share)


def _cut(images: Any, holes: Any, side: int) -> Any:
    # offset of each pixel from the square's first row and column; a square may hang over the edge
    rows = np.arange(images.shape[1]) - holes[:, :1] + side // 2
    columns = np.arange(images.shape[2]) - holes[:, 1:] + side // 2
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    hole = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    xp = images.__array_namespace__()  # JAX's or NumPy's
    colour = xp.round(xp.mean(images, axis=(1, 2), keepdims=True)).astype(images.dtype)
    return xp.where(hole, colour, images)


class Batches(keras.utils.PyDataset):
    """Feeds shuffled, augmented batches; which ones is a function of (seed, epoch) alone.

    A batch is uint8 images `(b, height, width, channels)`, their targets `(b, ...)` and, if images
    are weighed, float32 weights `(b,)`. The last batch may be smaller.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        targets: npt.NDArray[Any],
        config: AugmentationConfig,
        *,
        batch_size: int,
        seed: int,
        weights: npt.NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self.images, self.targets, self.weights = images, targets, weights
        self.pick = backend.picker(images)
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Shuffle and draw for an epoch, counted from 0; call it before the epoch begins.

        Keras's own `on_epoch_end` is no place for it: Keras 3.15 calls that before the first epoch
        as well.
        """
        rng = np.random.default_rng([self.seed, epoch])
        n, turned = len(self.images), None
        if self.config.flip_alternates:
            turned = np.random.default_rng([self.seed, 0, 1]).random(n) < 0.5
            turned ^= bool(epoch % 2)
        # one attribute, set at once: a prefetching thread sees the old epoch or the new one
        self.plan = rng.permutation(n), draw(self.config, n, self.images.shape[1:], rng, turned)

    def fed(self) -> Any:
        """Return what Keras's `fit` takes of it, fastest."""
        return backend.fed(self)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        order, draws = self.plan
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        batch = augment(self.config, self.pick(rows), draws, rows), self.targets[rows]
        return batch if self.weights is None else (*batch, self.weights[rows])
