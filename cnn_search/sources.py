"""Reads images and labels from where they lie; each reader gives a `Found`, as yet unchecked.

digits are part of scikit-learn; cifar10, fashion_mnist and signs are archives as published, in a
folder of the user's, of Debian's or of Keras's; the user's own are a folder, an `.npz` or an `.h5`.
"""

import contextlib
import gzip
import hashlib
import itertools
import os
import pickle
import socket
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_search import backend
from cnn_search.errors import DataError

LARGEST_SIDE = 128  # pixels; larger images of a folder are resized
SILENCE_SECONDS = 20  # of the network, after which Keras's download is given up
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

CIFAR10_MD5 = {  # as published with the archive
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# Of the decompressed bytes: Debian's .gz miss the MD5s that the README publishes, since their
# gzip headers are new; with the old ones (file name, 2017-08-31) put back, all four have them.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
ACCEPTED = {  # what may lie in the data folder
    "cifar10": "cifar10.npz or the folder cifar-10-batches-py (in "
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz)",
    "fashion_mnist": "fashion_mnist.npz, or here or in fashion-mnist/ the files "
    f"{', '.join(f'{file}.gz' for file in FASHION_MNIST_SHA256)} of "
    "https://github.com/zalandoresearch/fashion-mnist (Debian: dataset-fashion-mnist)",
    "signs": "train_signs.h5 and test_signs.h5",
}
DATA_DIR_REMEDY = (
    "Say which folder by --data-dir or CNN_SEARCH_DATA_DIR; digits needs no files and no network."
)
FETCH_AGAIN = "The file is missing, truncated or another one: fetch it again."

TRAIN_KEYS = (("x_train", "y_train"), ("train_set_x", "train_set_y"))
TEST_KEYS = (("x_test", "y_test"), ("test_set_x", "test_set_y"))
PLAIN_KEYS = (("x", "y"), ("images", "labels"))
NAME_KEYS = ("class_names", "list_classes")
KNOWN_KEYS = {*itertools.chain(*TRAIN_KEYS, *TEST_KEYS, *PLAIN_KEYS, NAME_KEYS)}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
GREY_MODES = {"1", "L", "LA"}  # Pillow's words, all of 8 bits or fewer


class Raw(NamedTuple):
    """Holds images and labels as their source has them, and the images' files where there are."""

    images: NDArray[Any]
    labels: NDArray[Any]
    files: Sequence[str] = ()


class Found(NamedTuple):
    """Holds what a reader found; the class names are None where the source has none."""

    source: str
    train: Raw
    test: Raw | None = None
    class_names: tuple[str, ...] | None = None
    notes: Sequence[str] = ()


def wrong(where: object, expected: str, received: object, remedy: str) -> DataError:
    """Words every error about data alike, in one line."""
    message = f"{where}: expected {expected}; received {received}. {remedy}"
    return DataError(" ".join(message.split()))


def read_digits(_: Path | None) -> Found:
    """Reads scikit-learn's own digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255, 8 -> 128
    source = "scikit-learn's load_digits, grey values 0..16 scaled to 0..255"
    return Found(source, Raw(images, digits.target))


def read_cifar10(data_dir: Path | None) -> Found:
    """Reads Keras's archive or the official batches; without a folder, by Keras."""
    if data_dir is None:
        return _read_with_keras("cifar10")
    if (archive := data_dir / "cifar10.npz").is_file():
        return read_array_file(archive)
    if not (folder := data_dir / "cifar-10-batches-py").is_dir():
        raise _not_found("cifar10", data_dir)
    images, labels = [], []
    for file, md5 in CIFAR10_MD5.items():
        # Pickle may run anything at all: it gets only what the MD5 vouches for.
        batch = pickle.loads(_read_published(folder / file, md5), encoding="latin1")
        images.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(batch["labels"]))
    train = Raw(np.concatenate(images[:5]), np.concatenate(labels[:5]))
    return Found(f"the official batches in {folder}", train, Raw(images[5], labels[5]))


def read_fashion_mnist(data_dir: Path | None) -> Found:
    """Reads Keras's or the official archives; without a folder, Debian's, else by Keras."""
    if data_dir is None and DEBIAN_FASHION_MNIST.is_dir():
        data_dir = DEBIAN_FASHION_MNIST
    if data_dir is None:
        return _read_with_keras("fashion_mnist")
    if (archive := data_dir / "fashion_mnist.npz").is_file():
        return read_array_file(archive)
    for folder in (data_dir, data_dir / "fashion-mnist"):
        if any((folder / f"{file}.gz").is_file() for file in FASHION_MNIST_SHA256):
            train_x, train_y, test_x, test_y = (
                np.frombuffer(_read_published(folder / f"{file}.gz", sha256), np.uint8)
                for file, sha256 in FASHION_MNIST_SHA256.items()
            )
            train = Raw(train_x[16:].reshape(-1, 28, 28), train_y[8:])  # behind the headers
            test = Raw(test_x[16:].reshape(-1, 28, 28), test_y[8:])
            return Found(f"the official archives in {folder}", train, test)
    raise _not_found("fashion_mnist", data_dir)


def read_signs(data_dir: Path | None) -> Found:
    """Reads the two files of SIGNS."""
    files = ("train_signs.h5", "test_signs.h5")
    if data_dir is None or not all((data_dir / file).is_file() for file in files):
        raise _not_found("signs", data_dir)
    return read_array_file(data_dir / files[0])


def _read_with_keras(name: str) -> Found:
    """Reads by Keras's own loader, which downloads once and keeps a cache in ~/.keras/datasets."""
    backend.load()
    import keras

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)  # Keras sets none and would wait for minutes
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception when it cannot download
        expected = "Keras's loader to find it in ~/.keras/datasets or to download it"
        remedy = f"Delete a damaged copy there, or put {ACCEPTED[name]} in a folder."
        raise wrong(name, expected, error, f"{remedy} {DATA_DIR_REMEDY}") from error
    finally:
        socket.setdefaulttimeout(patience)
    return Found("Keras's own loader", Raw(*train), Raw(*test))


def _read_published(path: Path, published: str) -> bytes:
    """Reads what has the published MD5, or in a `.gz` the published SHA-256."""
    whole, digest, words = "a batch of CIFAR-10", hashlib.md5, "the published MD5"
    if path.suffix == ".gz":
        whole, digest, words = "a whole gzip archive", hashlib.sha256, "content with the SHA-256"
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(path, whole, error, FETCH_AGAIN) from error
    if (received := digest(content, usedforsecurity=False).hexdigest()) != published:
        raise wrong(path, f"{words} {published}", received, FETCH_AGAIN)
    return content


def _not_found(name: str, data_dir: Path | None) -> DataError:
    where, received = f"{name} in {data_dir}", "no such folder"
    if data_dir is None:
        where, received = name, "no folder, and there is no download"
    elif data_dir.is_dir():
        held = sorted(path.name for path in data_dir.iterdir())
        received = f"a folder with {', '.join(held[:5]) or 'nothing'}{', ...' * (len(held) > 5)}"
    return wrong(where, ACCEPTED[name], received, f"Put it in a folder. {DATA_DIR_REMEDY}")


def read_array_file(path: Path) -> Found:
    """Reads an `.npz` or `.h5`; `train_NAME` takes its test part from a `test_NAME` beside it."""
    arrays, test, source = _arrays(path), None, str(path)
    train = _pick(path, arrays, TRAIN_KEYS + PLAIN_KEYS)
    beside = path.with_name(path.name.replace("train_", "test_", 1))
    if not arrays.keys().isdisjoint(itertools.chain(*TEST_KEYS)):
        test = _pick(path, arrays, TEST_KEYS)
    elif path.name.startswith("train_") and beside.is_file():
        test = _pick(beside, _arrays(beside), TEST_KEYS + PLAIN_KEYS)
        source += f" and {beside.name}"
    if (names := next((arrays[key] for key in NAME_KEYS if key in arrays), None)) is None:
        return Found(source, train, test)
    decoded = (n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names.flat)
    return Found(source, train, test, tuple(decoded))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays under known keys and never unpickles."""
    import h5py

    read = np.load if path.suffix.lower() == ".npz" else h5py.File
    try:  # from a stream, since numpy leaves a broken file open
        with path.open("rb") as stream, read(stream) as file:
            keys = [*file]
            arrays = {key: np.asarray(file[key][()]) for key in keys if key in KNOWN_KEYS}
    except MemoryError:
        raise
    except Exception as error:  # numpy, zipfile and h5py raise many kinds on a damaged file
        raise wrong(path, "a whole .npz or .h5 of plain arrays", error, FETCH_AGAIN) from error
    if not arrays:
        expected = f"some of the keys {', '.join(sorted(KNOWN_KEYS))}"
        raise wrong(path, expected, ", ".join(keys) or "none", "Rename the arrays.")
    return arrays


def _pick(path: Path, arrays: dict[str, NDArray[Any]], pairs: Sequence[tuple[str, str]]) -> Raw:
    """Takes the first pair of keys, images and labels, that is there."""
    for images, labels in pairs:
        if images in arrays and labels in arrays:
            return Raw(arrays[images], arrays[labels])
    expected = f"the keys {' or '.join(f'{images} and {labels}' for images, labels in pairs)}"
    raise wrong(path, expected, ", ".join(arrays), "Add or rename the arrays.")


def read_folder(folder: Path, image_size: tuple[int, int] | None) -> Found:
    """Reads a folder of one sub-folder a class, or of `train` and `test` of such."""

    def named(files: Sequence[Path]) -> list[tuple[str, Path]]:
        return [(file.relative_to(folder).as_posix(), file) for file in files]

    roots = _part_folders(folder)
    class_names = _subfolders(roots[0])
    listed = [[f for f in _seen(r, "*/*") if f.suffix.lower() in IMAGE_SUFFIXES] for r in roots]
    for root, files in zip(roots, listed, strict=True):
        if not files:
            expected = "one sub-folder a class with PNG or JPEG images"
            received = f"{len(_subfolders(root))} sub-folders and no image in one of a class"
            raise wrong(root, expected, received, "Sort the images into such folders.")
    everything = [*itertools.chain(*listed)]
    sizes, modes = zip(*_each(folder, named(everything), _size_and_mode), strict=True)
    height, width = image_size or (min(LARGEST_SIDE, round(m)) for m in np.median(sizes, axis=0))
    decode = partial(_decode, "L" if {*modes} <= GREY_MODES else "RGB", height, width)
    parts = [
        Raw(
            np.stack(_each(folder, named(files), decode)),
            np.array([class_names.index(file.parent.name) for file in files]),
            [name for name, _ in named(files)],
        )
        for files in listed
    ]
    notes = []
    if resized := sum(size != (height, width) for size in sizes):
        notes.append(
            f"{resized} of {len(sizes)} images resized to {height}x{width} (height x width), "
            f"whatever their aspect, from {len({*sizes})} sizes, "
            "{}x{} to {}x{}".format(*min(sizes, key=np.prod), *max(sizes, key=np.prod))
        )
    if others := sorted({f for f in _seen(folder, "**/*") if f.is_file()} - {*everything}):
        notes.append(f"Files ignored: {len(others)}, as {others[0].relative_to(folder)}")
    return Found(f"the images in {folder}", parts[0], (*parts, None)[1], class_names, notes)


def _part_folders(folder: Path) -> list[Path]:
    """Gives the folder itself, or its `train`, and `test` if there, where they hold classes."""
    inside = _subfolders(folder)
    if "train" not in inside or not _subfolders(folder / "train"):
        return [folder]
    if others := sorted({*inside} - {"train", "test"}):
        remedy = "Move its images into train (the validation part is split off here) or elsewhere."
        raise wrong(folder, "train and test alone", f"also {', '.join(others)}", remedy)
    roots = [folder / name for name in ("train", "test") if name in inside]
    classes = _subfolders(roots[0])
    if others := sorted({*_subfolders(roots[-1])} - {*classes}):
        expected = f"the classes of train ({', '.join(classes)})"
        raise wrong(roots[-1], expected, f"also {', '.join(others)}", "Rename or remove them.")
    return roots


def _seen(folder: Path, pattern: str) -> list[Path]:
    """Lists what matches and is not hidden, nor in a hidden folder."""
    paths = sorted(path.relative_to(folder) for path in folder.glob(pattern))
    return [folder / path for path in paths if not any(part[0] == "." for part in path.parts)]


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in _seen(folder, "*") if path.is_dir())


def _each(where: object, files: Sequence[tuple[str, Any]], read: Callable[[Any], Any]) -> list[Any]:
    """Reads each file, given with its name, and names those that cannot be read all at once."""
    results, broken = [], []
    for name, file in files:
        try:
            results.append(read(file))
        except Exception as error:  # a decoder may raise anything at all on a broken file
            broken.append(f"{name} ({error})")
    if broken:
        received = f"{len(broken)} that cannot be read: {', '.join(broken[:3])}"
        expected = "PNG or JPEG images of 8 bits a channel"
        raise wrong(where, expected, received, "Repair or remove them.")
    return results


def _size_and_mode(file: Path | BinaryIO) -> tuple[tuple[int, int], str]:
    """Reads (height, width) and Pillow's mode from an image's header."""
    from PIL import ExifTags, Image

    with Image.open(file) as image:
        if image.mode[0] in "IF":  # 16 or 32 bits
            raise ValueError(f"Pillow's mode {image.mode}")
        on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.size if on_its_side else image.size[::-1]), image.mode


def read_photos(
    photos: Sequence[Path | BinaryIO], names: Sequence[str], shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Reads photos of any size as a model takes them: upright, as uint8 (n, *shape).

    Raises:
        DataError: some cannot be read; the message has their names.
    """
    height, width, channels = shape

    def read(photo: Path | BinaryIO) -> NDArray[np.uint8]:
        _size_and_mode(photo)  # which refuses 16 bits
        return _decode("L" if channels == 1 else "RGB", height, width, photo)

    return np.stack(_each("photos", list(zip(names, photos, strict=True)), read))


def _decode(mode: str, height: int, width: int, file: Path | BinaryIO) -> NDArray[np.uint8]:
    """Reads an image upright as uint8 (height, width, channels)."""
    from PIL import Image, ImageOps

    with Image.open(file) as stored:
        image = ImageOps.exif_transpose(stored)
        if "transparency" in image.info:  # else Pillow warns of palettes that have it
            image = image.convert("RGBA")
        image = image.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, -1)
