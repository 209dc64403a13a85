"""Tests of a user's mistakes and the world's: one line each, exit code 2, before any training."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from cnn_search import baseline, engines, search, sweep
from cnn_search.errors import (
    CnnSearchError,
    DataError,
    DefinitionError,
    LedgerError,
    TrackingError,
)

ROOT = Path(__file__).parents[1]
Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "CNN_SEARCH_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Gives a call of the sweep command that must end with one error and leave no sweep."""

    def start(self: engines.InlineEngine) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(engines.InlineEngine, "start", start)

    def call(
        *arguments: str,
        kind: type[Exception] = DefinitionError,
        lines: int = 1,
        mlruns: Path = tmp_path / "mlruns",
    ) -> str:
        before = sorted(mlruns.glob("sweeps/*/*"))
        with pytest.raises(kind) as caught:
            sweep.main.main(
                [*arguments, "--threads", "1", "--workers", "0", "--mlruns", str(mlruns)],
                standalone_mode=False,
            )
        assert isinstance(caught.value, CnnSearchError | click.ClickException)
        assert len(str(caught.value).splitlines()) == lines
        assert sorted(mlruns.glob("sweeps/*/*")) == before
        return str(caught.value)

    return call


def digits(each: int = 10, classes: int = 10) -> Arrays:
    """Gives the first real images of each of the first classes of digits, as an .npz has them."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = [np.flatnonzero(source.target == label)[:each] for label in range(classes)]
    chosen = np.concatenate(rows)
    images = np.rint(source.images[chosen] * 255 / 16).astype(np.uint8)
    return {"x": images, "y": source.target[chosen]}


# The exit code, and the form of the line, of real processes


@pytest.mark.parametrize(
    ("module", "arguments", "errors"),
    [
        ("sweep", ["digitz"], ["digitz: expected the name of a sweep"]),
        (
            "sweep",
            ["wrong.toml"],
            ["wrong.toml: seed: expected", "wrong.toml: [training] epochs: expected"],
        ),
        (
            "sweep",
            ["digits", "--set", "space.kernal=3", "--set", "space.kernel=4"],
            ["[space] kernal: no such hyperparameter", "[space] kernel: expected 3; received"],
        ),
        ("sweep", ["cifar10", "--data-dir", "empty"], ["cifar10 in empty: expected cifar10.npz"]),
        ("baseline", ["digitz"], ["digitz: expected the name of a sweep"]),
        ("registry", ["show", "digits"], ["mlruns: expected MLflow's database, mlflow.db"]),
    ],
)
def test_a_mistake_is_a_line_on_stderr_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    arguments: list[str],
    errors: list[str],
) -> None:
    (tmp_path / "wrong.toml").write_text('data = "digits"\nseed = 0\n[training]\nepochs = "two"\n')
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", f"cnn_search.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-len(errors) :] == found
    for line, expected in zip(found, errors, strict=True):
        assert expected in line
    assert {path.name for path in tmp_path.iterdir()} == {"wrong.toml", "empty"}


# The definition


def test_an_unknown_sweep_is_refused(refuse: Callable[..., str]) -> None:
    assert "Did you mean cifar10, " in refuse("cifra10")


def test_a_broken_toml_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('data = "digits"\n[training\n')
    assert "own.toml: expected a TOML file; " in refuse(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("kernal=3", r"[space] kernal: no such hyperparameter; the space has activation, "),
        ("kernel=4", "[space] kernel: expected 3; received [4]."),
        ("kernel=[3, 4, 7]", "[space] kernel: expected 3; received [4, 7]."),
        ("kernel=[]", "[space] kernel: expected 3; received []."),
        ("kernel=3 px", '[space] kernel: expected 3; received ["3 px"].'),
        ("residual=1", "[space] residual: expected "),
        ("learning_rate=7", "[space] learning_rate: expected 0.0003 to 0.01; received [7]."),
        ("filters_1=nan", "[space] filters_1: expected 8, 16, 32, 64, 128; received [NaN]."),
    ],
)
def test_what_the_space_does_not_have_is_refused(
    refuse: Callable[..., str], value: str, message: str
) -> None:
    assert message in refuse("digits", "--set", f"space.{value}")


def test_all_problems_of_a_space_are_told_at_once(refuse: Callable[..., str]) -> None:
    options = [f"--set=space.{value}" for value in ("kernal=3", "kernel=4", "filters_1=9")]
    assert "filters_1" in refuse("digits", *options, lines=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--try", "kernel=4"], "--try kernel=4: expected 3."),
        (["--set", 'baselines=["lenet5"]'], "baselines: expected some of vgg_bn; received 'lenet5"),
        (["--set", "search_space=digit"], "expected the name of a file in search_spaces/"),
        (["--set", "search_space=os:nothing"], "'file.py:Class'; received 'os:nothing' (Attr"),
        (
            ["--oracle", "grid", "--set", 'oracle.over=["kernal"]'],
            "[oracle] over: kernal: no such hyperparameter",
        ),
        (["--oracle", "tpee"], "options: [oracle] kind: expected 'random', "),
        (["--set", "oracle.knd=3"], "options: [oracle] knd: no such key; did you mean kind?"),
    ],
)
def test_what_no_space_or_baseline_has_is_refused(
    refuse: Callable[..., str], options: list[str], message: str
) -> None:
    assert message in refuse("digits", *options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "hp.Choice('own', [1, 2])\n"
            "        with hp.conditional_scope('own', [2]): hp.Choice('flip', [1, 2])",
            "received flip twice",
        ),
        ("hp.Choice('own', [])", "`values` must be provided"),
        ("hp.Choice('own (me)', [1, 2])", "received 'own (me)'. Rename it"),
        ("hp.Choice('seed', [1, 2])", "and not epochs or seed"),
        ("hp.Choice('own', [object()])", "`int`, `float`, `str`, or `bool`"),
        ("hp.Choice('own', [1, None])", "only one type of value"),
        ("hp.Choice('own', [1.0, math.inf])", "own: expected finite numbers; received inf"),
        ("hp.Choice('own', [math.nan, 1.0])", "own: expected finite numbers; received nan"),
    ],
)
def test_a_space_that_cannot_be_declared_is_refused(
    refuse: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    (tmp_path / "own_space.py").write_text(
        "import math\nfrom search_spaces import digits\nclass Space(digits.Space):\n"
        f"    def configure(self, hp):\n        {line}\n        return super().configure(hp)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    told = refuse("digits", "--set", "search_space=own_space:Space")
    assert told.startswith("search_space: own_space:Space: ")
    assert message in told


# The data


def test_data_that_cannot_be_had_says_which_file_goes_where(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    message = refuse("cifar10", "--data-dir", str(tmp_path / "empty"), kind=DataError)
    for part in (
        f"cifar10 in {tmp_path / 'empty'}: expected cifar10.npz or the folder cifar-10-batches-py",
        "received a folder with nothing",
        "by --data-dir or CNN_SEARCH_DATA_DIR",
        "digits needs no files and no network",
    ):
        assert part in message


def without_one_label(arrays: Arrays) -> None:
    arrays["y"] = arrays["y"][:-1]


def two_names(arrays: Arrays) -> None:
    arrays["class_names"] = ["zero", "one"]


def one_class(arrays: Arrays) -> None:
    arrays.update(digits(20, classes=1))


def nan_pixels(arrays: Arrays) -> None:
    arrays["x"] = arrays["x"] / 255
    arrays["x"][3, 0, 0] = np.nan


def two_of_a_class(arrays: Arrays) -> None:
    keep = np.r_[0:92]
    arrays.update(x=arrays["x"][keep], y=arrays["y"][keep])


def no_images(arrays: Arrays) -> None:
    arrays.update(x=arrays["x"][:0], y=arrays["y"][:0])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without_one_label, "as many labels as images; received 100 images and 99 labels"),
        (two_names, "expected labels from 0 to 1, since there are 2 classes; received labels from"),
        (one_class, "expected at least two classes; received 1"),
        (nan_pixels, "expected no NaN pixels; received 1 of them"),
        (two_of_a_class, "at least 3 training images of every class, .*received 2 of class '9'"),
        (no_images, r"received uint8 of \(0, 8, 8, 1\)"),
    ],
)
def test_bad_arrays_are_refused(
    refuse: Callable[..., str], tmp_path: Path, harm: Callable[[Arrays], None], message: str
) -> None:
    arrays = digits()
    harm(arrays)
    np.savez(tmp_path / "own.npz", **arrays)
    assert re.search(f"own.npz.*: .*{message}", refuse(str(tmp_path / "own.npz"), kind=DataError))


def test_a_truncated_npz_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **digits())
    path.write_bytes(path.read_bytes()[:-100])
    message = refuse(str(path), kind=DataError)
    assert f"{path}: expected a whole .npz or .h5" in message
    assert "truncated" in message


def test_an_unreadable_image_of_a_folder_is_named(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    arrays = digits(classes=2)
    for row, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        (tmp_path / "own" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "own" / str(label) / f"{row}.png")
    broken = tmp_path / "own" / "1" / "15.png"
    broken.write_bytes(broken.read_bytes()[:40])
    message = refuse(str(tmp_path / "own"), kind=DataError)
    assert "received 1 that cannot be read: 1/15.png (" in message


def test_an_empty_folder_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    message = refuse(str(tmp_path / "own"), kind=DataError)
    assert "expected one sub-folder a class with PNG or JPEG images; received 0" in message


# Where it is written to


def test_an_unwritable_mlruns_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # nobody, not even root, can make a folder below a file
    below = tmp_path / "file" / "mlruns"
    message = refuse("digits", kind=TrackingError, mlruns=below)
    assert f"{below}: expected a folder that can be written; " in message
    assert "pass --mlruns" in message


def test_an_unwritable_mlruns_is_refused_beside_a_server_of_the_users_own(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")
    (tmp_path / "file").touch()
    message = refuse("digits", kind=LedgerError, mlruns=tmp_path / "file" / "mlruns")
    assert "expected a folder that can be written; Not a directory" in message


def test_a_baseline_is_not_trained_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ended with a traceback of NotADirectoryError
    def train(*arguments: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("cnn_search.training.train", train)
    (tmp_path / "file").touch()
    options = [
        "digits",
        "--threads",
        "1",
        "--mlruns",
        str(tmp_path / "file" / "mlruns"),
    ]
    with pytest.raises(LedgerError, match="expected a folder that can be written; Not a directory"):
        baseline.main.main(options, standalone_mode=False)


@pytest.fixture
def port() -> Iterator[tuple[int, socket.socket]]:
    """Gives a port of this machine, and the socket that is bound to it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1], server


@pytest.mark.timeout(60)  # MLflow alone would try for minutes
@pytest.mark.parametrize("answers", ["nobody", "never"])
def test_a_server_that_does_not_answer_is_given_up(
    refuse: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    port: tuple[int, socket.socket],
    answers: str,
) -> None:
    number, server = port
    if answers == "never":
        server.listen()  # the kernel takes connections; nobody ever reads from them
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{number}")
    message = refuse("digits", kind=TrackingError)
    assert message.startswith(f"MLflow: expected an answer from http://127.0.0.1:{number}; rec")
    assert "Start the server, correct MLFLOW_TRACKING_URI, or unset it" in message
    assert not (tmp_path / "mlruns").exists()


# A sweep that is there already

FINISHED = ["own.npz", "--trials", "1", "--epochs", "1", "--no-final"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder with a data set and a finished sweep of one trial over it."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "own.npz", **digits(classes=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        patch.chdir(folder)
        options = [*FINISHED, "--threads", "1", "--workers", "0", "--json"]
        assert sweep.main.main(options, standalone_mode=False) == 0
    return folder


@pytest.fixture
def ledger(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives the ledger of a copy of the finished sweep, in the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (path,) = tmp_path.glob("mlruns/sweeps/own-*/ledger.jsonl")
    return path


@pytest.mark.parametrize("harm", ["changed", "lost", "swapped"])
def test_a_damaged_line_in_the_middle_of_a_ledger_is_named_and_left_as_it_is(
    refuse: Callable[..., str], ledger: Path, harm: str
) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert len(lines) > 5
    if harm == "changed":
        lines[2] = lines[2].replace(b'"trial": 0', b'"trial": 1')
    elif harm == "lost":
        del lines[2]
    else:
        lines[2:4] = lines[3:1:-1]
    ledger.write_bytes(b"".join(lines))
    message = refuse(*FINISHED, kind=LedgerError)
    assert "ledger.jsonl: line 3 is damaged" in message
    assert "Restore the file from a copy, or start anew with --new." in message
    assert ledger.read_bytes() == b"".join(lines)


def test_a_ledger_of_another_definition_is_refused_with_the_difference(
    refuse: Callable[..., str], ledger: Path
) -> None:
    before = ledger.read_bytes()
    message = refuse(*FINISHED, "--epochs", "2", "--set", "space.kernel=3", kind=LedgerError)
    assert "training.epochs: 1 -> 2; space.kernel: null -> 3." in message
    assert "Start a new sweep with --new, or leave the change out." in message
    assert ledger.read_bytes() == before


def test_a_ledger_of_other_images_is_refused(refuse: Callable[..., str], ledger: Path) -> None:
    before = ledger.read_bytes()
    np.savez("own.npz", **digits(11, classes=2))
    message = refuse(*FINISHED, kind=LedgerError)
    assert "expected the images it was started with (digest " in message
    assert "from own.npz. Start a new sweep with --new." in message
    assert ledger.read_bytes() == before


def test_a_second_driver_of_a_sweep_is_refused(refuse: Callable[..., str], ledger: Path) -> None:
    before = ledger.read_bytes()
    with search.hold(ledger.parent):
        message = refuse(*FINISHED, "--trials", "2", kind=LedgerError)
    assert "expected to be its only driver; another process holds it." in message
    assert ledger.read_bytes() == before
