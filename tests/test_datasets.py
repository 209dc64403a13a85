"""Tests of `cnn_search.datasets`: real images in, the same sorted and split `Dataset` out."""

import gzip
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from cnn_search import datasets, sources
from cnn_search.datasets import Dataset, load, safe_name
from cnn_search.errors import DataError

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("CNN_SEARCH_DATA_DIR", ROOT.parent / "shared" / "data"))

needs_cifar10 = pytest.mark.skipif(
    not (REAL_DATA / "cifar10.npz").is_file(), reason=f"no cifar10.npz in {REAL_DATA}"
)
needs_signs = pytest.mark.skipif(
    not (REAL_DATA / "train_signs.h5").is_file(), reason=f"no train_signs.h5 in {REAL_DATA}"
)
needs_fashion_mnist = pytest.mark.skipif(
    not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="no Debian package dataset-fashion-mnist"
)

Arrays = tuple[datasets.Images, datasets.Labels]


@pytest.fixture(autouse=True)
def _no_data_dir_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNN_SEARCH_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def cifar10() -> Dataset:
    return load("cifar10", data_dir=REAL_DATA)


@pytest.fixture(scope="module")
def digits() -> Arrays:
    """Gives scikit-learn's 1,797 real images, (8, 8, 1), in the order of their source."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.rint(source.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    return images, source.target.astype(np.int64)


def write_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def write_folder(folder: Path, images: Any, labels: Any) -> str:
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / str(label) / f"{row:04}.png")
    return str(folder)


def few(digits: Arrays, each: int = 10, classes: int = 10) -> Arrays:
    """Takes the first `each` images of each of the first classes."""
    images, labels = digits
    rows = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(classes)])
    return images[rows], labels[rows]


def same_parts(one: Dataset, other: Dataset) -> bool:
    return all(
        np.array_equal(getattr(one, part).images, getattr(other, part).images)
        and np.array_equal(getattr(one, part).labels, getattr(other, part).labels)
        for part in ("train", "validation", "test")
    )


def counts(part: datasets.Part) -> list[int]:
    return list(np.bincount(part.labels))


def test_importing_stays_light() -> None:
    code = (
        "import sys, cnn_search.datasets\n"
        "heavy = {'keras', 'tensorflow', 'sklearn', 'h5py', 'PIL', 'pandas', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The known data sets


def test_digits_give_up_a_fifth_for_the_test_and_a_fifth_of_the_rest_to_validate() -> None:
    digits = load("digits")
    assert digits.name == "digits"
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert [len(p.labels) for p in (digits.train, digits.validation, digits.test)] == [
        *(1150, 288, 359)
    ]
    for part in (digits.train, digits.validation, digits.test):
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.images.max() == 255
        assert max(counts(part)) - min(counts(part)) <= 8  # the source has 174 to 183 a class


def test_the_split_of_digits_never_changes() -> None:
    digits = load("digits")
    assert digits.digest == "d78dda0f7893e56b35d1ab7849a359cab2d00f16b0f76a3aca407b936c177cdc"
    assert digits.test_digest() == (
        "13d4fa60d8f791641389a613cc0a6a87c4a78994d174e72a5827d65947d0d1c5"
    )
    assert digits.validation.labels[:12].tolist() == [1, 2, 7, 0, 0, 7, 1, 1, 5, 6, 1, 3]
    assert same_parts(digits, load("digits"))


def test_parts_stay_sorted_and_disjoint() -> None:
    digits = load("digits")
    parts = (digits.train, digits.validation, digits.test)
    hashes = [datasets._hash(part.images) for part in parts]
    assert all((np.diff(each.astype(object)) >= 0).all() for each in hashes)
    assert len(np.unique(np.concatenate(hashes))) == 1797


@needs_cifar10
def test_cifar10_keeps_its_test_part_and_a_tenth_validates(cifar10: Dataset) -> None:
    assert cifar10.input_shape == (32, 32, 3)
    assert cifar10.class_names[3] == "cat"
    assert counts(cifar10.train) == [4500] * 10
    assert counts(cifar10.validation) == [500] * 10
    assert counts(cifar10.test) == [1000] * 10
    # The published channel means: nothing was lost or swapped on the way.
    mean = cifar10.train.images.mean((0, 1, 2)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.001)


@needs_cifar10
def test_official_batches_give_the_same_cifar10(
    cifar10: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with np.load(REAL_DATA / "cifar10.npz") as file:
        images, labels = file["x_train"], file["y_train"]
        batches = [(images[k::5], labels[k::5]) for k in range(5)]
        batches.append((file["x_test"], file["y_test"]))
    published = {}
    for name, (x, y) in zip(sources.CIFAR10_MD5, batches, strict=True):
        batch = {"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), "labels": y.tolist()}
        (folder / name).write_bytes(content := pickle.dumps(batch))
        published[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(sources, "CIFAR10_MD5", published)
    loaded = load("cifar10", data_dir=tmp_path)
    assert loaded.digest == cifar10.digest
    assert same_parts(loaded, cifar10)


def test_a_batch_without_the_published_md5_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + b"harm'\ntR.")
    with pytest.raises(DataError, match=r"data_batch_1: expected the published MD5 c99cafc1"):
        load("cifar10", data_dir=tmp_path)


def test_cifar10_must_have_the_published_counts(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 6)
    images = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), np.uint8)
    arrays = {"x_train": images, "y_train": labels}
    write_npz(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(DataError, match="cifar10: expected a test part, as published"):
        load("cifar10", data_dir=tmp_path)
    write_npz(tmp_path / "cifar10.npz", **arrays, x_test=images, y_test=labels)
    with pytest.raises(DataError, match="expected 5000 images of 32x32x3 a class, as published"):
        load("cifar10", data_dir=tmp_path)


@needs_cifar10
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cifar10_loads_within_the_stated_memory() -> None:
    # VmHWM and not ru_maxrss: a child inherits its parent's ru_maxrss, here that of the tests.
    code = textwrap.dedent(
        f"""
        import re, cnn_search.datasets
        def kilobytes(key):
            return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        before = kilobytes("VmRSS")
        cnn_search.datasets.load("cifar10", data_dir={str(REAL_DATA)!r})
        print(kilobytes("VmHWM") - before)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1.5e9


@needs_signs
def test_signs_keeps_its_test_part_by_name_and_by_path() -> None:
    signs = load("signs", data_dir=REAL_DATA)
    assert signs.input_shape == (64, 64, 3)
    assert counts(signs.train) == [144] * 6
    assert counts(signs.validation) == [36] * 6
    assert counts(signs.test) == [20] * 6
    by_path = load(str(REAL_DATA / "train_signs.h5"))  # finds test_signs.h5 beside it
    assert by_path.name == "train_signs"
    assert by_path.digest == signs.digest
    assert by_path.test_digest() == signs.test_digest()


@needs_signs
def test_images_of_signs_in_two_parts_are_counted() -> None:
    # Our copy, made from JPEGs, holds some signs twice.
    notes = load("signs", data_dir=REAL_DATA).notes
    assert [note.split(", as image")[0] for note in notes] == [
        "Images that stand in both train and validation: 14",
        "Images that stand in both train and test: 10",
        "Images that stand in both validation and test: 2",
    ]


@needs_signs
def test_signs_finds_its_folder_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_SEARCH_DATA_DIR", str(REAL_DATA))
    assert load("signs").classes == 6


@needs_fashion_mnist
def test_fashion_mnist_comes_from_debian_or_from_a_folder(tmp_path: Path) -> None:
    debian = load("fashion_mnist")
    assert debian.input_shape == (28, 28, 1)
    assert debian.class_names[0] == "T-shirt/top"
    assert counts(debian.train) == [5400] * 10
    assert counts(debian.test) == [1000] * 10
    (tmp_path / "fashion-mnist").symlink_to(sources.DEBIAN_FASHION_MNIST)
    assert load("fashion_mnist", data_dir=tmp_path).digest == debian.digest


@needs_fashion_mnist
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda content: content[: len(content) // 2], "t10k-labels.*: expected a whole gzip"),
        (lambda content: b"not gzip", "t10k-labels.*: expected a whole gzip"),
        (lambda content: gzip.compress(b"other"), "t10k-labels.*: expected content with the SHA"),
        (None, "t10k-labels.*: expected a whole gzip.*No such file"),
    ],
    ids=["truncated", "foreign", "other content", "missing"],
)
def test_a_wrong_archive_of_fashion_mnist_is_named(
    tmp_path: Path, harm: Callable[[bytes], bytes] | None, message: str
) -> None:
    for file in sources.DEBIAN_FASHION_MNIST.glob("*.gz"):
        (tmp_path / file.name).symlink_to(file)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.unlink()
    if harm:
        labels.write_bytes(harm(content))
    with pytest.raises(DataError, match=message):
        load("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", r"cifar10\.npz or the folder cifar-10-batches-py"),
        ("fashion_mnist", r"fashion_mnist\.npz, or .*t10k-labels-idx1-ubyte\.gz"),
        ("signs", r"train_signs\.h5 and test_signs\.h5"),
    ],
)
def test_a_data_dir_without_the_files_says_which_belong_there(
    tmp_path: Path, name: str, file: str
) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=f"{file}.*a folder with holiday.jpg.*--data-dir.*digits"):
        load(name, data_dir=tmp_path)
    with pytest.raises(DataError, match=f"{file}.*no such folder"):
        load(name, data_dir=tmp_path / "nowhere")


def test_signs_says_that_there_is_no_download() -> None:
    with pytest.raises(DataError, match=r"train_signs\.h5.*there is no download.*digits needs"):
        load("signs")


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_offline_keras_says_what_to_do(name: str, tmp_path: Path) -> None:
    # Its own process: Keras reads KERAS_HOME once. All of Keras runs, only the socket is shut.
    code = textwrap.dedent(
        f"""
        import socket, urllib.error, urllib.request
        from pathlib import Path
        from cnn_search import datasets, sources
        from cnn_search.errors import DataError
        def closed_network(url, data=None, *more):
            assert url.startswith(("https://www.cs.toronto.edu/", "https://storage.googleapis"))
            assert socket.getdefaulttimeout() == sources.SILENCE_SECONDS
            raise urllib.error.URLError(OSError(-3, "Temporary failure in name resolution"))
        urllib.request.urlopen = closed_network
        sources.DEBIAN_FASHION_MNIST = Path("/nowhere")
        try:
            datasets.load({name!r})
        except DataError as error:
            print(error)
        assert socket.getdefaulttimeout() is None
        """
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = done.stdout.splitlines()  # Keras's own chatter stays out
    assert line.startswith(f"{name}: expected Keras's loader to find it in ~/.keras/datasets")
    for part in ("URL fetch failure on https://", "name resolution", "--data-dir", "digits needs"):
        assert part in line


# The user's own data


def test_every_source_of_the_same_images_gives_the_same_dataset(
    digits: Arrays, tmp_path: Path
) -> None:
    images, labels = digits
    shuffled = np.random.default_rng(7).permutation(len(labels))
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["images"], file["labels"] = images[::-1], labels[::-1]
        file["class_names"] = [str(name) for name in range(10)]
    sources = [
        write_npz(tmp_path / "plain.npz", x=images, y=labels),
        write_npz(tmp_path / "keras.npz", x_train=images[shuffled], y_train=labels[shuffled, None]),
        write_npz(tmp_path / "grey.npz", images=images[..., 0] / 255, labels=labels.astype("f8")),
        write_folder(tmp_path / "folder", images[shuffled], labels[shuffled]),
        str(tmp_path / "own.h5"),
    ]
    expected = load("digits")
    for source in sources:
        loaded = load(source)
        assert loaded.name == Path(source).stem
        assert loaded.digest == expected.digest, source
        assert loaded.test_digest() == expected.test_digest(), source
        assert same_parts(loaded, expected), source


def test_copies_of_one_image_are_sorted_by_label(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits)
    images = np.concatenate([images, images[:1]])
    labels = np.append(labels, 5)
    one = load(write_npz(tmp_path / "one.npz", x=images, y=labels))
    other = load(write_npz(tmp_path / "other.npz", x=images[::-1], y=labels[::-1]))
    assert one.digest == other.digest
    assert any("Images that stand with two labels: 1, as image" in note for note in one.notes)


def test_the_digest_depends_on_names_labels_and_shape(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits)
    sources = [
        write_npz(tmp_path / "a.npz", x=images, y=labels),
        write_npz(tmp_path / "b.npz", x=images, y=labels, class_names=[*"abcdefghij"]),
        write_npz(tmp_path / "c.npz", x=images, y=(labels + 1) % 10),
        write_npz(tmp_path / "d.npz", x=images.reshape(-1, 4, 16, 1), y=labels),
    ]
    assert len({load(source).digest for source in sources}) == 4


def test_ten_thousand_training_images_give_up_a_tenth(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (10_000, 4, 4), np.uint8)
    labels = np.arange(10_000) % 4
    given = {"x_test": images[:8], "y_test": labels[:8]}
    large = load(write_npz(tmp_path / "large.npz", x_train=images, y_train=labels, **given))
    assert counts(large.validation) == [250] * 4
    fewer = {"x_train": images[1:], "y_train": labels[1:]}
    assert len(load(write_npz(tmp_path / "small.npz", **fewer, **given)).validation.labels) == 2000


def test_rare_classes_stand_in_every_part(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits, each=150, classes=2)
    keep = np.append(np.arange(150), [150, 151, 152])  # 150 zeros, three ones
    rare = load(write_npz(tmp_path / "rare.npz", x=images[keep], y=labels[keep]))
    assert [counts(part)[1] for part in (rare.train, rare.validation, rare.test)] == [1, 1, 1]


def test_the_first_tenth_or_nothing_validates_on_demand() -> None:
    tenth, none = load("digits", validation="first_tenth"), load("digits", validation="none")
    assert len(tenth.validation.labels) == 143
    assert len(none.validation.labels) == 0
    assert none.validation.images.shape == (0, 8, 8, 1)
    joined = np.concatenate([tenth.validation.images, tenth.train.images])
    assert np.array_equal(joined, none.train.images)
    assert tenth.digest == none.digest == load("digits").digest


def test_a_train_limit_takes_a_stratified_subset_and_leaves_the_test_part() -> None:
    whole, limited = load("digits"), load("digits", train_limit=200)
    assert len(limited.train.labels) == 160
    assert counts(limited.validation) == [4] * 10
    assert limited.test_digest() == whole.test_digest()
    assert limited.digest != whole.digest
    assert load("digits", train_limit=1438).digest == whole.digest
    with pytest.raises(DataError, match="a train limit of at least 20 images, two a class.*19"):
        load("digits", train_limit=19)


def test_train_and_test_folders_are_the_parts(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits)
    write_folder(tmp_path / "own" / "train", images, labels)
    write_folder(tmp_path / "own" / "test", images[::5], labels[::5])
    own = load(str(tmp_path / "own"))
    assert len(own.test.labels) == 20
    assert own.class_names == tuple("0123456789")
    found = [note for note in own.notes if "stand in both" in note]
    assert sum(int(note.split(": ")[1].split(",")[0]) for note in found) == 20
    assert any(
        re.search(r"both train and test: \d+, as train/.*png and test/.*png", n) for n in found
    )


def test_a_validation_folder_is_refused(digits: Arrays, tmp_path: Path) -> None:
    write_folder(tmp_path / "train", *few(digits))
    write_folder(tmp_path / "val", *few(digits))
    with pytest.raises(DataError, match="train and test alone; received also val.*split off here"):
        load(str(tmp_path))


def test_a_test_folder_with_an_unknown_class_is_refused(digits: Arrays, tmp_path: Path) -> None:
    write_folder(tmp_path / "train", *few(digits, classes=3))
    write_folder(tmp_path / "test", *few(digits, classes=4))
    with pytest.raises(DataError, match=r"the classes of train \(0, 1, 2\); received also 3"):
        load(str(tmp_path))


def test_train_and_test_may_be_classes(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits, classes=2)
    names = np.array(["test", "train"])[labels]
    assert load(write_folder(tmp_path, images, names)).class_names == ("test", "train")


def photographs(folder: Path, sizes: list[tuple[int, int]], suffix: str = ".jpg") -> None:
    generator = np.random.default_rng(3)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for row, size in enumerate(sizes):
            pixels = generator.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{row}{suffix}")


def test_mixed_sizes_are_resized_and_said(tmp_path: Path) -> None:
    photographs(tmp_path, [(20, 30), (24, 30), (24, 34), (24, 40)], ".JPEG")
    loaded = load(str(tmp_path))
    assert loaded.input_shape == (24, 32, 3)
    assert loaded.notes == (
        "8 of 8 images resized to 24x32 (height x width), whatever their aspect, from 4 sizes, "
        "20x30 to 24x40",
    )
    assert load(str(tmp_path), image_size=(16, 12)).input_shape == (16, 12, 3)
    with pytest.raises(DataError, match="at least 4x4 pixels; received 0x9"):
        load(str(tmp_path), image_size=(0, 9))


def test_large_images_are_resized_to_128_pixels_a_side(tmp_path: Path) -> None:
    photographs(tmp_path, [(200, 100)] * 4)
    loaded = load(str(tmp_path))
    assert loaded.input_shape == (128, 100, 3)
    assert "8 of 8 images resized to 128x100" in loaded.notes[0]


def test_images_of_one_size_up_to_128_stay_as_they_are(tmp_path: Path) -> None:
    photographs(tmp_path, [(128, 128)] * 4, ".png")
    loaded = load(str(tmp_path))
    assert loaded.notes == ()
    with Image.open(tmp_path / "cat" / "0.png") as image:
        expected = np.asarray(image)
    everything = np.concatenate([loaded.train.images, loaded.validation.images, loaded.test.images])
    assert (everything == expected).all((1, 2, 3)).sum() == 1


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    photographs(tmp_path, [(16, 8)] * 4, ".png")
    for file in tmp_path.rglob("*.png"):
        with Image.open(file) as image:
            exif = image.getexif()
            exif[0x0112] = 6  # the camera lay on its side
            image.load()
            image.save(file, exif=exif)
    loaded = load(str(tmp_path))
    assert loaded.input_shape == (8, 16, 3)
    assert loaded.notes == ()


def test_palettes_transparency_and_grey_become_three_channels(tmp_path: Path) -> None:
    photographs(tmp_path, [(8, 8)] * 4, ".png")
    with Image.open(tmp_path / "cat" / "0.png") as stored:
        image = stored.copy()
    image.convert("P").save(tmp_path / "cat" / "palette.png", transparency=bytes([0, 9, 99]))
    image.convert("RGBA").save(tmp_path / "cat" / "alpha.png")
    image.convert("L").save(tmp_path / "cat" / "grey.png")
    image.convert("1").save(tmp_path / "cat" / "bits.png")
    assert load(str(tmp_path)).input_shape == (8, 8, 3)


def test_hidden_files_are_passed_over_and_others_are_said(digits: Arrays, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", *few(digits))
    (tmp_path / "own" / "0" / ".DS_Store").touch()
    (tmp_path / "own" / ".cache").mkdir()
    (tmp_path / "own" / "1" / "notes.txt").touch()
    assert load(folder).notes == ("Files ignored: 1, as 1/notes.txt",)


def test_unreadable_images_are_named_all_at_once(digits: Arrays, tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path / "own", *few(digits)))
    (folder / "3" / "empty.png").touch()
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(folder / "4" / "deep.png")
    with pytest.raises(
        DataError, match=r"2 that cannot be read: 3/empty\.png .*4/deep\.png .*I;16"
    ):
        load(str(folder))


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    photographs(tmp_path, [(64, 64)] * 4)
    file = tmp_path / "dog" / "2.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"1 that cannot be read: dog/2\.jpg \(image file is trunc"):
        load(str(tmp_path))


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="expected one sub-folder a class.*received 0 sub-folders"):
        load(str(tmp_path))


# What is wrong with arrays, told in one line before anything is trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(y=a["y"][:-1]), "as many labels as images; received 100 images and 99"),
        (lambda a: a.update(y=a["y"] - 1), "expected labels from 0 to 8.*received labels from -1"),
        (lambda a: a.update(class_names=["a", "b"]), "labels from 0 to 1, since there are 2 class"),
        (lambda a: a.update(y=a["y"] * 1000), "labels that count classes from 0, with 100 images"),
        (lambda a: a.update(y=a["y"] * 0), "at least two classes; received 1"),
        (lambda a: a.update(y=a["y"] + 1), r"received 0 of class '0'.*labels from 0"),
        (lambda a: a.update(x=a["x"][:92], y=a["y"][:92]), "at least 3 .*received 2 of class '9'"),
        (lambda a: a.update(y=np.eye(10)[a["y"]]), r"labels as whole numbers.*\(100, 10\)"),
        (lambda a: a.update(y=a["y"] + 0.5), "labels as whole numbers.*float64"),
        (lambda a: a.update(y=a["y"].astype(str)), "labels as whole numbers.*U21"),
        (lambda a: a.update(x=a["x"][:0], y=a["y"][:0]), r"received uint8 of \(0, 8, 8, 1\)"),
        (lambda a: a.update(x=a["x"].reshape(100, 64)), r"numbers of shape.*\(100, 64\)"),
        (lambda a: a.update(x=a["x"][:, :3]), "at least 4x4 pixels and 1 or 3 .*received 3x8x1"),
        (lambda a: a.update(x=a["x"].repeat(2, -1)), "1 or 3 channels; received 8x8x2"),
        (lambda a: a.update(x=np.where(a["x"] == 0, np.nan, 0.5)), "no NaN pixels; received [0-9]"),
        (lambda a: a.update(x=a["x"] - 0.5), "whole numbers 0..255 or floats 0..1; .*float64 from"),
        (lambda a: a.update(x=a["x"] * 2.5), "whole numbers 0..255 or floats 0..1; .* to 637.5"),
        (lambda a: a.update(x=a["x"] / 100), "whole numbers 0..255 or floats 0..1; .* to 2.55"),
        (
            lambda a: a.update(x=a["x"].astype(object)),
            "a whole .npz or .h5 of plain arrays.*pickle",
        ),
        (lambda a: a.update(class_names=["a b", "a_b", *"cdefghij"]), "differ even where '/' and"),
        (lambda a: a.update(x_test=a["x"][:5]), "expected the keys x_test and y_test or"),
        (
            lambda a: a.update(x_test=a["x"][:, :4], y_test=a["y"]),
            "8x8x1 as in training; received 4",
        ),
        (lambda a: a.update(x_test=a["x"], y_test=a["y"] + 9), "test part: expected labels from"),
        (lambda a: (a.pop("x"), a.pop("y")), "expected some of the keys .*received pixels"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(
    digits: Arrays, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    images, labels = few(digits)
    arrays: dict[str, Any] = {"x": images, "y": labels, "pixels": [1]}
    if "test part: expected" in message:
        arrays["class_names"] = [*"abcdefghij"]
    change(arrays)
    path = write_npz(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated_array_files_are_refused(
    digits: Arrays, tmp_path: Path, suffix: str, part: float
) -> None:
    images, labels = few(digits)
    path = tmp_path / f"own{suffix}"
    if suffix == ".npz":
        write_npz(path, x=images, y=labels)
    else:
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = images, labels
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError, match=r"own.*: expected a whole \.npz or \.h5.*fetch it again"):
        load(str(path))


def test_a_file_that_only_says_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    shutil.move(tmp_path / "one.npy", tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"expected a whole \.npz"):
        load(str(tmp_path / "one.npz"))


def test_whole_numbers_and_floats_become_uint8_and_are_said(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits)
    exact = load(write_npz(tmp_path / "exact.npz", x=images, y=labels))
    for pixels in (images.astype(np.int32), images.astype(np.float32), images / np.float32(255)):
        loaded = load(write_npz(tmp_path / "other.npz", x=pixels, y=labels))
        assert loaded.digest == exact.digest
        assert f"{pixels.dtype} from 0" in loaded.notes[0]
        assert "converted to uint8" in loaded.notes[0]


def test_a_test_file_beside_a_train_file_is_its_test_part(digits: Arrays, tmp_path: Path) -> None:
    images, labels = few(digits)
    path = write_npz(tmp_path / "train_own.npz", x=images[::2], y=labels[::2])
    write_npz(tmp_path / "test_own.npz", x=images[1::2], y=labels[1::2])
    own = load(path)
    assert counts(own.test) == [5] * 10
    assert "test_own.npz" in own.source


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"cifar01: expected one of digits, .*Did you mean cifar10\?"
    ):
        load("cifar01")
    with pytest.raises(DataError, match="received a file of another kind"):
        load(__file__)
    with pytest.raises(DataError, match="an image size only with a folder.*received 16x16"):
        load("digits", image_size=(16, 16))


def test_safe_names_have_no_slash_and_no_space() -> None:
    assert safe_name("T-shirt/top") == "T-shirt_top"
    assert safe_name("Ankle boot") == "Ankle_boot"
