"""Tests of `cnn_search.augmentation`, against scipy, numpy and Keras's old ImageDataGenerator.

What was drawn for an image is read back from its affine map by `read_back`; the oracles get these
numbers and must make the same image of them.
"""

import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage

from cnn_search.augmentation import AugmentationConfig, Batches, Draws, augment, draw
from cnn_search.datasets import load

SHAPE = (8, 8, 1)
EVERYTHING = AugmentationConfig(shift=0.2, zoom=0.2, flip=True, rotation=20, crop=2, cutout=3)
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def images() -> Array:
    """Gives 48 real digits, uint8 (48, 8, 8, 1)."""
    return load("digits").train.images[:48]


@pytest.fixture(scope="module")
def wide(images: Array) -> Array:
    """Gives 12 real images that are not square: four digits side by side, (12, 8, 32, 1)."""
    return np.concatenate(np.split(images, 4), axis=2)


class Drawn(NamedTuple):
    """What was drawn for each image: moves in pixels, factors, 1 or -1, radians."""

    down: Array
    right: Array
    zoom_down: Array
    zoom_right: Array
    mirror: Array
    angle: Array


def read_back(draws: Draws, shape: tuple[int, int, int]) -> Drawn:
    assert draws.transforms is not None
    a0, a1, a2, b0, b1, b2, *rest = draws.transforms.astype(float).T
    np.testing.assert_array_equal(rest, 0)
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    angle = np.arctan2(-a1, b1)
    cos, sin = np.cos(angle), np.sin(angle)
    scale_x = cos * a0 + sin * b0
    moved_x, moved_y = a2 - x + a0 * x + a1 * y, b2 - y + b0 * x + b1 * y
    return Drawn(
        down=-sin * moved_x + cos * moved_y,
        right=cos * moved_x + sin * moved_y,
        zoom_down=np.hypot(a1, b1),
        zoom_right=np.abs(scale_x),
        mirror=np.sign(scale_x),
        angle=angle,
    )


def drawn(config: AugmentationConfig, n: int, seed: int = 1, shape: Any = SHAPE) -> Draws:
    return draw(config, n, shape, np.random.default_rng(seed))


def augmented(config: AugmentationConfig, images: Array, seed: int = 1) -> tuple[Array, Draws]:
    draws = drawn(config, len(images), seed, images.shape[1:])
    return augment(config, images, draws, np.arange(len(images))), draws


def by_scipy(image: Array, d: Drawn, k: int, mode: str) -> Array:
    """Transforms image k as (row, column) coordinates, from the centre, in one interpolation."""
    cos, sin = np.cos(d.angle[k]), np.sin(d.angle[k])
    turn = np.array([[cos, sin], [-sin, cos]])
    matrix = turn @ np.diag([d.zoom_down[k], d.zoom_right[k] * d.mirror[k]])
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre + turn @ [d.down[k], d.right[k]] - matrix @ centre
    channels = [
        scipy.ndimage.affine_transform(channel, matrix, offset, order=1, mode=mode)
        for channel in np.moveaxis(image.astype(float), -1, 0)
    ]
    return np.stack(channels, -1)


KINDS = {
    "shift": AugmentationConfig(shift=0.2),
    "zoom": AugmentationConfig(zoom=0.2),
    "flip": AugmentationConfig(flip=True),
    "rotation": AugmentationConfig(rotation=20),
    "crop": AugmentationConfig(crop=2),
    "vgg_bn's": AugmentationConfig(shift=0.2, zoom=0.2, flip=True),
    "all": AugmentationConfig(shift=0.2, zoom=0.2, flip=True, rotation=20, crop=2),
}


# One image against independent oracles


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_is_scipys_affine_transform(kind: str, images: Array, wide: Array) -> None:
    for some in (images, wide, np.concatenate([wide, 255 - wide, wide // 2], axis=3)):
        changed, draws = augmented(KINDS[kind], some)
        d = read_back(draws, some.shape[1:])
        assert changed.dtype == np.uint8
        assert changed.shape == some.shape
        for k, image in enumerate(some):
            expected = by_scipy(image, d, k, "nearest")
            assert np.abs(changed[k] - expected).max() <= 1, (kind, k)
        assert (changed != some).any()


@pytest.mark.parametrize(
    ("fill", "mode"),
    [("nearest", "nearest"), ("reflect", "reflect"), ("constant", "grid-constant")],
)
def test_what_stands_outside_the_image_is_filled(fill: Any, mode: str, wide: Array) -> None:
    some = 255 - wide  # bright borders: a wrong fill shows
    config = AugmentationConfig(shift=0.4, zoom=0.2, rotation=20, fill=fill)
    changed, draws = augmented(config, some)
    d = read_back(draws, some.shape[1:])
    for k, image in enumerate(some):
        assert np.abs(changed[k] - by_scipy(image, d, k, mode)).max() <= 1, k


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "crop"])
def test_a_move_is_what_kerass_old_image_data_generator_makes_of_it(
    kind: str, images: Array
) -> None:
    legacy: Any = pytest.importorskip("keras.src.legacy.preprocessing.image")
    generator = legacy.ImageDataGenerator(fill_mode="nearest")
    changed, draws = augmented(KINDS[kind], images)
    d = read_back(draws, SHAPE)
    for k, image in enumerate(images):
        # since keras-preprocessing 1.1 its "x" is the column; its flip comes after the rest
        parameters = {
            "theta": np.rad2deg(d.angle[k]),
            "tx": d.right[k],
            "ty": d.down[k],
            "zx": d.zoom_right[k],
            "zy": d.zoom_down[k],
            "flip_horizontal": d.mirror[k] < 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # scipy.ndimage.interpolation
            expected = generator.apply_transform(image.astype(float), parameters)
        assert np.abs(changed[k] - expected).max() <= 1, (kind, k)


def test_flip_alone_is_an_exact_mirror_of_about_half_of_the_images(images: Array) -> None:
    changed, draws = augmented(AugmentationConfig(flip=True), images)
    mirrored = read_back(draws, SHAPE).mirror < 0
    np.testing.assert_array_equal(changed[mirrored], images[mirrored, :, ::-1])
    np.testing.assert_array_equal(changed[~mirrored], images[~mirrored])
    assert 10 < mirrored.sum() < 38


@pytest.mark.parametrize(
    ("fill", "mode"), [("nearest", "edge"), ("reflect", "symmetric"), ("constant", "constant")]
)
def test_crop_cuts_an_exact_window_of_the_padded_image(fill: Any, mode: Any, wide: Array) -> None:
    some = 255 - wide
    crop = 2
    changed, draws = augmented(AugmentationConfig(crop=crop, fill=fill), some)
    d = read_back(draws, some.shape[1:])
    rows, columns = np.rint(d.down).astype(int), np.rint(d.right).astype(int)
    padded = np.pad(some, ((0, 0), (crop, crop), (crop, crop), (0, 0)), mode=mode)
    for k, (row, column) in enumerate(zip(rows + crop, columns + crop, strict=True)):
        window = padded[k, row : row + 8, column : column + 32]
        np.testing.assert_array_equal(changed[k], window)
    assert len(set(zip(rows, columns, strict=True))) > 5


@pytest.mark.parametrize("side", [1, 2, 3, 12])
def test_cutout_paints_a_square_in_the_images_mean_colour(side: int, wide: Array) -> None:
    some = np.concatenate([wide, 255 - wide, wide // 2], axis=3)
    changed, draws = augmented(AugmentationConfig(cutout=side), some)
    assert draws.holes is not None
    for k, (middle_row, middle_column) in enumerate(draws.holes):
        expected = some[k].copy()
        top, left = middle_row - side // 2, middle_column - side // 2
        colour = np.rint(some[k].reshape(-1, 3).mean(0))
        expected[max(0, top) : top + side, max(0, left) : left + side] = colour
        np.testing.assert_array_equal(changed[k], expected)


def test_cutout_comes_after_the_moves(images: Array) -> None:
    both, draws = augmented(AugmentationConfig(shift=0.2, cutout=3), images)
    moved = augment(AugmentationConfig(shift=0.2), images, Draws(draws.transforms, None), ALL)
    cut = augment(AugmentationConfig(cutout=3), moved, Draws(None, draws.holes), ALL)
    np.testing.assert_array_equal(both, cut)


ALL = np.arange(48)


def test_off_leaves_every_byte_as_it_was(images: Array) -> None:
    changed, draws = augmented(AugmentationConfig(), images)
    assert draws == Draws(None, None)
    np.testing.assert_array_equal(changed, images)
    assert not AugmentationConfig().moves
    assert not AugmentationConfig(cutout=3).moves


def test_a_batch_gets_the_draws_of_its_rows(images: Array) -> None:
    whole, draws = augmented(EVERYTHING, images)
    rows = np.array([40, 3, 17])
    np.testing.assert_array_equal(augment(EVERYTHING, images[rows], draws, rows), whole[rows])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's alone keep images on the GPU")
def test_images_on_the_gpu_give_the_same_batches(images: Array, monkeypatch: Any) -> None:
    def batches() -> Batches:
        return Batches(images, ALL, EVERYTHING, batch_size=16, seed=1)

    here = batches()
    monkeypatch.setattr("cnn_search.backend.gpu_bytes", lambda: 5 * images.nbytes)
    there = batches()
    assert type(there.pick(ALL)) is not np.ndarray
    for i in range(len(here)):
        np.testing.assert_array_equal(np.asarray(there[i][0]), np.asarray(here[i][0]))


def test_the_given_images_stay_as_they_were(images: Array) -> None:
    before = images.copy()
    augmented(EVERYTHING, images)
    augmented(AugmentationConfig(cutout=4), images)
    np.testing.assert_array_equal(images, before)


# What gets drawn


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        ({"zoom": 0.0}, {"zoom_down", "zoom_right"}),
        ({"flip": False}, {"mirror"}),
        ({"rotation": 0.0}, {"angle"}),
        ({"cutout": 0}, set()),
        ({"shift": 0.0}, {"down", "right"}),
        ({"crop": 0}, {"down", "right"}),
        ({"crop": 1}, {"down", "right"}),
    ],
)
def test_switching_one_kind_off_leaves_what_the_others_draw(
    off: dict[str, Any], fields: set[str]
) -> None:
    on = drawn(EVERYTHING, 200)
    less = drawn(AugmentationConfig(**(vars(EVERYTHING) | off)), 200)
    one, other = read_back(on, SHAPE), read_back(less, SHAPE)
    for name in set(Drawn._fields) - fields:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-5)
    for name in fields:
        assert not np.allclose(getattr(one, name), getattr(other, name), atol=1e-3)
    if "cutout" not in off:
        assert on.holes is not None
        np.testing.assert_array_equal(on.holes, less.holes)


def test_shift_and_crop_add_up() -> None:
    both = read_back(drawn(AugmentationConfig(shift=0.2, crop=2), 100), SHAPE)
    shift = read_back(drawn(AugmentationConfig(shift=0.2), 100), SHAPE)
    crop = read_back(drawn(AugmentationConfig(crop=2), 100), SHAPE)
    np.testing.assert_allclose(both.down, shift.down + crop.down, atol=2e-5)
    np.testing.assert_allclose(both.right, shift.right + crop.right, atol=2e-5)


def even(values: Array, low: float, high: float) -> bool:
    """Says whether values lie evenly in [low, high], to its ends: each tenth holds a tenth."""
    counts, _ = np.histogram(values, 10, (low, high))
    share = counts / len(values)
    return bool((share > 0.08).all() and (share < 0.12).all() and counts.sum() == len(values))


def test_shift_is_continuous_in_a_share_of_each_side() -> None:
    d = read_back(drawn(AugmentationConfig(shift=0.2), 5000, shape=(10, 40, 3)), (10, 40, 3))
    assert even(d.down, -2.001, 2.001)
    assert even(d.right, -8.001, 8.001)
    assert abs(np.corrcoef(d.down, d.right)[0, 1]) < 0.05
    assert len(np.unique(d.right.round(3))) > 4000


def test_zoom_is_drawn_for_each_axis_on_its_own() -> None:
    d = read_back(drawn(AugmentationConfig(zoom=0.2), 5000), SHAPE)
    assert even(d.zoom_down, 0.7999, 1.2001)
    assert even(d.zoom_right, 0.7999, 1.2001)
    assert abs(np.corrcoef(d.zoom_down, d.zoom_right)[0, 1]) < 0.05
    assert np.abs([d.down, d.right]).max() < 1e-5  # about the centre


def test_flip_rotation_crop_and_cutout_are_drawn_evenly() -> None:
    draws = drawn(EVERYTHING, 5000)
    d = read_back(draws, SHAPE)
    assert 0.47 < (d.mirror < 0).mean() < 0.53
    assert even(np.rad2deg(d.angle), -20.001, 20.001)
    crop = read_back(drawn(AugmentationConfig(crop=2), 5000), SHAPE)
    for move in (crop.down, crop.right):
        np.testing.assert_allclose(move, np.rint(move), atol=1e-5)
        counts = np.unique(np.rint(move), return_counts=True)
        assert counts[0].tolist() == [-2, -1, 0, 1, 2]
        assert (counts[1] > 850).all()
    assert draws.holes is not None
    for middle in draws.holes.T:
        assert (np.bincount(middle, minlength=8) > 500).all()
        assert middle.max() == 7


def test_a_hole_is_drawn_over_the_whole_of_an_image_that_is_not_square() -> None:
    holes = drawn(AugmentationConfig(cutout=2), 2000, shape=(4, 20, 1)).holes
    assert holes is not None
    assert holes.max(0).tolist() == [3, 19]
    assert holes.min(0).tolist() == [0, 0]


# Batches


def batches(images: Array, config: AugmentationConfig = EVERYTHING, **options: Any) -> Batches:
    chosen: dict[str, Any] = {"batch_size": 20, "seed": 1} | options
    return Batches(images, np.arange(len(images)), config, **chosen)


def test_an_image_is_mirrored_in_every_other_epoch_if_flips_alternate(images: Array) -> None:
    feed = batches(images, AugmentationConfig(flip=True, flip_alternates=True))
    sides = []
    for number in range(4):
        changed, rows = (np.concatenate(parts) for parts in zip(*epoch(feed, number), strict=True))
        original, mirrored = images[rows], images[rows][:, :, ::-1]
        as_it_was = (changed == original).all(axis=(1, 2, 3))
        assert (as_it_was | (changed == mirrored).all(axis=(1, 2, 3))).all()
        sides.append(as_it_was[np.argsort(rows)])
    lopsided = (images != images[:, :, ::-1]).any(axis=(1, 2, 3))
    first, second, third, fourth = (side[lopsided] for side in sides)
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    np.testing.assert_array_equal(fourth, second)
    assert 0.2 < first.mean() < 0.8


def epoch(feed: Batches, number: int) -> list[tuple[Array, ...]]:
    feed.start(number)
    return [feed[k] for k in range(len(feed))]


def rows_of(feed: Batches, number: int) -> list[int]:
    return np.concatenate([batch[1] for batch in epoch(feed, number)]).tolist()


def test_an_epoch_holds_every_image_once_and_its_last_batch_is_smaller(images: Array) -> None:
    feed = batches(images, AugmentationConfig())
    assert len(feed) == 3
    for number in range(3):
        parts = epoch(feed, number)
        assert [len(part[0]) for part in parts] == [20, 20, 8]
        assert sorted(rows_of(feed, number)) == list(range(48))
        for x, y in parts:
            assert x.dtype == np.uint8
            np.testing.assert_array_equal(x, images[y])


def test_batches_are_a_function_of_seed_and_epoch(images: Array) -> None:
    one, other = batches(images), batches(images)
    for number in (0, 1, 2):
        epoch(other, number)
    for number in (2, 0):  # the other one has been elsewhere in between
        for (x, y), (x_again, y_again) in zip(
            epoch(one, number), epoch(other, number), strict=True
        ):
            np.testing.assert_array_equal(x, x_again)
            np.testing.assert_array_equal(y, y_again)


def test_another_epoch_or_seed_has_another_order_and_other_draws(images: Array) -> None:
    feed, other = batches(images), batches(images, seed=2)
    orders = [rows_of(feed, 0), rows_of(feed, 1), rows_of(other, 0), rows_of(other, 1)]
    assert len({tuple(order) for order in orders}) == 4
    transforms = []
    for each, number in ((feed, 0), (feed, 1), (other, 0)):
        each.start(number)
        transforms.append(each.plan[1].transforms)
    assert not np.allclose(transforms[0], transforms[1])
    assert not np.allclose(transforms[0], transforms[2])


def test_a_new_feed_stands_at_epoch_0(images: Array) -> None:
    feed = batches(images)
    first = [feed[k][1].tolist() for k in range(3)]
    assert first == [batch[1].tolist() for batch in epoch(batches(images), 0)]


def test_the_order_does_not_depend_on_the_augmentation(images: Array) -> None:
    assert rows_of(batches(images), 3) == rows_of(batches(images, AugmentationConfig()), 3)


def test_what_happens_to_an_image_does_not_depend_on_the_batch_size(images: Array) -> None:
    def by_row(size: int) -> dict[int, bytes]:
        parts = epoch(batches(images, batch_size=size), 1)
        return {int(row): x.tobytes() for batch in parts for x, row in zip(*batch, strict=True)}

    assert by_row(48) == by_row(7)


def test_weights_follow_their_images(images: Array) -> None:
    weights = (np.arange(48) / 10).astype(np.float32)
    for _, rows, some in epoch(batches(images, weights=weights), 4):
        assert some.dtype == np.float32
        np.testing.assert_array_equal(some, weights[rows])


def test_keras_feeds_each_epochs_own_batches_in_their_order(images: Array) -> None:
    class Recorded(Batches):
        def __getitem__(self, index: int) -> tuple[Array, ...]:
            x, y = super().__getitem__(index)
            seen.append(y.tolist())
            return x, y.astype(np.float32)

    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    seen: list[list[int]] = []
    feed = Recorded(images, np.arange(48), EVERYTHING, batch_size=20, seed=1)
    start = keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, _: feed.start(number))
    model.fit(feed.fed(), initial_epoch=2, epochs=5, shuffle=False, callbacks=[start], verbose=0)
    expected = [
        batch[1].tolist() for number in (2, 3, 4) for batch in epoch(batches(images), number)
    ]
    # Keras also looks at the first batch of a new feed, to learn its shapes
    assert seen[-len(expected) :] == expected
