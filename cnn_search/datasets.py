"""Makes a name or a path into one checked, sorted and split `Dataset`.

Every source of the same images (an archive, a shuffled copy, a folder of PNGs) gives the same
`Dataset`: images are sorted by the hash of their bytes before anything is split or digested.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_search import sources
from cnn_search.sources import Found, Raw, wrong

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SPLIT_SEED = 1  # one split for all sweeps: another seed makes old and new results incomparable
TEST_FRACTION = 0.2  # given up by a data set that has no test part
LARGE = 10_000  # training images from which 10 % are enough to validate; 20 % below

DATASETS: dict[str, Callable[[Path | None], Found]] = {
    "digits": sources.read_digits,
    "cifar10": sources.read_cifar10,
    "fashion_mnist": sources.read_fashion_mnist,
    "signs": sources.read_signs,
}
CLASS_NAMES = {  # where the source has none; numbers name themselves
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "fashion_mnist": "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag".split()
    + ["Ankle boot"],
}
PUBLISHED = {  # (height, width, channels), training images a class, test images a class
    "cifar10": ((32, 32, 3), 5000, 1000),
    "fashion_mnist": ((28, 28, 1), 6000, 1000),
    "signs": ((64, 64, 3), 180, 20),
}


@dataclass(frozen=True, eq=False)
class Part:
    """Holds images, uint8 (n, height, width, channels), and their labels, int64 (n,)."""

    images: Images
    labels: Labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Holds one data set: its parts, each sorted by image hash, and where they came from."""

    name: str  # "cifar10", or the stem of the path
    source: str  # one sentence: where the images came from
    class_names: tuple[str, ...]  # as shown, in the order of the labels (for paths: `safe_name`)
    train: Part
    validation: Part  # what the search looks at; empty if asked for "none"
    test: Part  # what the final scoring alone looks at
    digest: str  # SHA-256 of shape, class names, images and labels of train and validation together
    notes: tuple[str, ...]  # what the user should know: images resized, or in two parts, ...

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Gives (height, width, channels)."""
        return self.train.images.shape[1:]

    @property
    def classes(self) -> int:
        """Counts the classes."""
        return len(self.class_names)

    def test_digest(self) -> str:
        """Computes the SHA-256 of the test part, made as `digest` is; for the final scoring."""
        return _digest(self.class_names, self.test)


class _Sorted(NamedTuple):
    """Holds a part in the order of its images' hashes; copies of one image stand by label."""

    images: Images
    labels: Labels
    hashes: NDArray[np.uint64]
    names: NDArray[np.str_]  # by which the user finds the images in their source

    def take(self, rows: Any) -> "_Sorted":
        return _Sorted(self.images[rows], self.labels[rows], self.hashes[rows], self.names[rows])


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_limit: int | None = None,
    image_size: tuple[int, int] | None = None,
    validation: Literal["stratified", "first_tenth", "none"] = "stratified",
) -> Dataset:
    """Loads a data set by its name in `DATASETS` or by its path.

    Args:
        name: A name; or a folder with one sub-folder of PNG and JPEG images a class (or `train`
            and `test` of such); or an `.npz` or `.h5` with the keys x_train, y_train, x_test,
            y_test, or those of SIGNS, or x, y, or images, labels, and class_names if there are.
        data_dir: Where published archives lie; else $CNN_SEARCH_DATA_DIR; else Keras's cache.
        train_limit: Takes a stratified subset of so many training images before the split.
        image_size: (height, width) to which the images of a folder are resized.
        validation: "stratified" (10 %, 20 % below 10,000 images), "first_tenth" by hash, "none".

    Raises:
        DataError: The data cannot be had or is not what it should be; one line, with a remedy.
    """
    found = _find(name, data_dir or os.environ.get("CNN_SEARCH_DATA_DIR"), image_size)
    notes = [*found.notes]
    raws = {"training": found.train} | ({"test": found.test} if found.test else {})
    parts = {title: _convert(f"{name}, {title} part", raw, notes) for title, raw in raws.items()}
    train, test = parts["training"], parts.get("test")
    highest = max(int(part.labels.max()) for part in parts.values())
    if highest >= len(train.labels):
        expected = f"labels that count classes from 0, with {len(train.labels)} images"
        raise wrong(name, expected, f"label {highest}", "Correct the labels.")
    class_names = tuple(CLASS_NAMES.get(name) or found.class_names or map(str, range(highest + 1)))
    classes = len(class_names)
    _check(name, class_names, parts, 1 + (validation == "stratified") + ("test" not in parts))
    if train_limit is not None and train_limit < 2 * classes:
        expected = f"a train limit of at least {2 * classes} images, two a class"
        raise wrong(name, expected, train_limit, "Raise it or leave it out.")
    if test is None:
        test, train = _stratify(train, max(round(TEST_FRACTION * len(train.labels)), classes))
    if train_limit is not None and train_limit < len(train.labels):
        train, _ = _stratify(train, train_limit, at_least=2)
    digest, count = _digest(class_names, train), len(train.labels)
    if validation == "stratified":
        size = max(round((0.1 if count >= LARGE else 0.2) * count), classes)
        held_out, train = _stratify(train, size)
    else:
        size = max(count // 10, 1) if validation == "first_tenth" else 0
        held_out, train = train.take(slice(size)), train.take(slice(size, None))
    return Dataset(
        name=name if name in DATASETS else Path(name).resolve().stem,
        source=found.source,
        class_names=class_names,
        train=Part(train.images, train.labels),
        validation=Part(held_out.images, held_out.labels),
        test=Part(test.images, test.labels),
        digest=digest,
        notes=(*notes, *_copies({"train": train, "validation": held_out, "test": test})),
    )


def safe_name(class_name: str) -> str:
    """Makes a class name fit for paths and metric names: "T-shirt/top" -> "T-shirt_top"."""
    return re.sub(r"[/\s]", "_", class_name)


def _find(name: str, data_dir: str | Path | None, image_size: tuple[int, int] | None) -> Found:
    path = Path(name).expanduser()
    is_folder = name not in DATASETS and path.is_dir()
    if image_size is not None and (not is_folder or min(image_size) < 4):
        expected = "an image size only with a folder of images, and at least 4x4 pixels"
        raise wrong(name, expected, _sides(image_size), "Enlarge it or leave it out.")
    if is_folder:
        return sources.read_folder(path, image_size)
    if name in DATASETS:
        return DATASETS[name](Path(data_dir).expanduser() if data_dir else None)
    if path.is_file() and path.suffix.lower() in {".npz", ".h5", ".hdf5"}:
        return sources.read_array_file(path)
    expected = f"one of {', '.join(DATASETS)}, or the path of a folder, an .npz or an .h5"
    received = "a file of another kind" if path.exists() else "no such name or path"
    close = difflib.get_close_matches(name, DATASETS, 1)
    raise wrong(name, expected, received, f"Did you mean {close[0]}?" if close else "Correct it.")


def _convert(where: str, raw: Raw, notes: list[str]) -> _Sorted:
    """Brings images to uint8 (n, height, width, channels) and labels to int64 (n,), and sorts."""
    images = raw.images[..., np.newaxis] if raw.images.ndim == 3 else raw.images
    labels = raw.labels[:, 0] if raw.labels.shape[1:] == (1,) else raw.labels
    if images.ndim != 4 or images.dtype.kind not in "biuf" or not images.size:
        expected = "numbers of shape (n, height, width) or (n, height, width, channels)"
        raise wrong(where, expected, f"{images.dtype} of {images.shape}", "Correct the images.")
    if min(images.shape[1:3]) < 4 or images.shape[3] not in (1, 3):
        expected = "images of at least 4x4 pixels and 1 or 3 channels"
        raise wrong(where, expected, _sides(images.shape[1:]), "Convert the images.")
    if labels.ndim != 1 or labels.dtype.kind not in "iuf" or (labels != np.rint(labels)).any():
        expected = "labels as whole numbers of shape (n,) or (n, 1)"
        raise wrong(where, expected, f"{labels.dtype} of {labels.shape}", "Number classes from 0.")
    if len(images) != len(labels):
        received = f"{len(images)} images and {len(labels)} labels"
        raise wrong(where, "as many labels as images", received, "Correct the data.")
    if images.dtype != np.uint8:
        images = _to_uint8(where, images, notes)
    images, labels = np.ascontiguousarray(images), labels.astype(np.int64)
    names = np.array(raw.files or [f"image {row} of its source" for row in range(len(images))])
    hashes = _hash(images)
    return _Sorted(images, labels, hashes, names).take(np.lexsort((labels, hashes)))


def _hash(images: Images) -> NDArray[np.uint64]:
    """Hashes each image; 64 bits are enough to sort by, and to find copies."""
    hashes = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


def _to_uint8(where: str, images: NDArray[Any], notes: list[str]) -> Images:
    """Takes whole numbers 0..255 as they are, and floats 0..1 times 255, rounded."""
    low, high = images.min(), images.max()
    if np.isnan(low):
        raise wrong(where, "no NaN pixels", f"{np.isnan(images).sum()} of them", "Remove them.")
    scale = 255 if images.dtype.kind in "bf" and low >= 0 and high <= 1 else 1
    whole = scale == 255 or all((image == np.rint(image)).all() for image in images)
    if low < 0 or high > 255 or not whole:
        expected = "pixels as whole numbers 0..255 or floats 0..1"
        raise wrong(where, expected, f"{images.dtype} from {low} to {high}", "Scale the images.")
    converted = np.empty(images.shape, np.uint8)
    for row, image in enumerate(images):  # one at a time, to hold no second copy in floats
        converted[row] = np.rint(image * scale)
    notes.append(f"{where}: {images.dtype} from {low} to {high} converted to uint8")
    return converted


def _check(name: str, names: Sequence[str], parts: dict[str, _Sorted], needed: int) -> None:
    """Checks what every data set must be, with `needed` training images of each class."""
    classes, shape = len(names), parts["training"].images.shape[1:]
    for title, part in parts.items():
        where, low, high = f"{name}, {title} part", part.labels.min(), part.labels.max()
        if (part_shape := part.images.shape[1:]) != shape:
            expected, received = f"images of {_sides(shape)} as in training", _sides(part_shape)
            raise wrong(where, expected, received, "Bring both parts to one shape.")
        if low < 0 or high >= classes:
            expected = f"labels from 0 to {classes - 1}, since there are {classes} classes"
            raise wrong(where, expected, f"labels from {low} to {high}", "Correct one of them.")
    if classes < 2:
        raise wrong(name, "at least two classes", classes, "Add images of another class.")
    if len({safe_name(class_name) for class_name in names}) < classes:
        expected = "class names that differ even where '/' and spaces become '_'"
        raise wrong(name, expected, ", ".join(names), "Rename the classes.")
    counts = np.bincount(parts["training"].labels, minlength=classes)
    if counts.min() < needed:
        expected = f"at least {needed} training images of every class, for the split"
        received = f"{counts.min()} of class '{names[int(counts.argmin())]}'"
        raise wrong(name, expected, received, "Add images, or drop the class (labels from 0).")
    if name in PUBLISHED:
        published, *published_counts = PUBLISHED[name]
        if "test" not in parts:
            raise wrong(name, "a test part, as published", "none", "Fetch the data again.")
        for (title, part), count in zip(parts.items(), published_counts, strict=True):
            counts = np.bincount(part.labels, minlength=classes)
            if shape != published or (counts != count).any():
                expected = f"{count} images of {_sides(published)} a class, as published"
                received = f"{counts.min()} to {counts.max()} of {_sides(shape)}"
                raise wrong(f"{name}, {title} part", expected, received, "Fetch the data again.")


def _sides(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def _stratify(part: _Sorted, size: int, at_least: int = 1) -> tuple[_Sorted, _Sorted]:
    """Divides a part into `size` images and the rest, each class in proportion, both in order."""
    generator = np.random.default_rng(SPLIT_SEED)
    place = np.empty(len(part.labels))  # in a queue in which the classes are evenly mixed
    for label in np.unique(part.labels):
        (members,) = np.nonzero(part.labels == label)
        rank = generator.permutation(len(members))
        place[members] = np.where(rank < at_least, -1, (rank + 0.5) / len(members))
    queue = np.argsort(place, kind="stable")
    return part.take(np.sort(queue[:size])), part.take(np.sort(queue[size:]))


def _digest(class_names: Sequence[str], part: Part | _Sorted) -> str:
    digest = hashlib.sha256(json.dumps([part.images.shape[1:], class_names]).encode())
    digest.update(part.images.data)
    digest.update(part.labels.astype("<i8").data)
    return digest.hexdigest()


def _copies(parts: dict[str, _Sorted]) -> list[str]:
    """Says which images stand in two parts, and which have two labels."""
    notes = []
    for (one, a), (other, b) in itertools.combinations(parts.items(), 2):
        same, a_at, b_at = np.intersect1d(a.hashes, b.hashes, return_indices=True)
        if len(same):
            example = f"{a.names[a_at[0]]} and {b.names[b_at[0]]}"
            notes.append(f"Images that stand in both {one} and {other}: {len(same)}, as {example}")
    together = zip(*(part[1:] for part in parts.values()), strict=True)
    labels, hashes, names = (np.concatenate(arrays) for arrays in together)
    order = np.lexsort((labels, hashes))
    labels, hashes = labels[order], hashes[order]
    (twice,) = np.nonzero((hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1]))
    if len(twice):
        count = len(np.unique(hashes[twice]))
        notes.append(f"Images that stand with two labels: {count}, as {names[order[twice[0]]]}")
    return notes
