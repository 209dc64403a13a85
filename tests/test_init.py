"""Tests of `init`: a sweep of one's own images, written, edited and run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_tracking as tiny
from click.testing import CliRunner, Result
from PIL import Image

from cnn_search import datasets, definition, init, score, sweep
from cnn_search.errors import DataError, DefinitionError, LedgerError
from cnn_search.spaces import declared
from cnn_search.subject import searched
from cnn_search.training import Protocol, find_space


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 3 classes of 12 images each in photos/, of sizes and names of their own."""
    tiny.forget_the_user(monkeypatch)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for number, name in enumerate(("Kätzchen", "a dog", "ship")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(12):
            image = rng.integers(60 * number, 60 * number + 120, (16, 16 + i % 2, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(init.main, arguments)


def test_what_it_writes_changes_nothing_until_it_is_edited(here: Path) -> None:
    done = run("mine", "--data", "photos")
    assert done.exit_code == 0, done.exception
    assert "images of 16x16x3, 3 classes" in done.output
    assert "python -m cnn_search.sweep mine.toml" in done.output
    written = definition.read("mine.toml", {})
    shipped = definition.read("photos", {"name": "mine"})
    assert written.as_json() == {**shipped.as_json(), "image_size": [16, 16]}


def test_every_choice_may_be_uncommented_and_is_what_varies_anyway(here: Path) -> None:
    run("mine", "--data", "photos")
    text = (here / "mine.toml").read_text()
    head, space = text.split("[space]")
    lines = [line.removeprefix("# ") for line in space.splitlines()[1:] if " = " in line]
    (here / "mine.toml").write_text(f"{head}[space]\n" + "\n".join(lines))
    written = definition.read("mine.toml", {})
    made = find_space("images")((16, 16, 3), 3, 20, Protocol(15))
    whole, narrowed = declared(made), searched(written, declared(made))
    floats = [hp.name for hp in whole.space if hasattr(hp, "min_value")]
    assert floats == ["learning_rate", "sgd_learning_rate"]  # a range is fixed at its default
    for before, after in zip(whole.space, narrowed.space, strict=True):
        if before.name not in floats:
            assert (after.name, list(after.values)) == (before.name, list(before.values))


def test_a_space_of_ones_own_is_written_and_searched(here: Path) -> None:
    done = run("mine", "--data", "photos", "--space")
    assert done.exit_code == 0, done.exception
    file = here / "mine_space.py"
    text = file.read_text().replace("depth = (2, 3, 4)", "depth = (1, 3)")
    file.write_text(re.sub(r"flip = .*", "flip = (True,)", text))
    options = "--trials 2 --epochs 1 --workers 0 --no-final --json"
    swept = CliRunner().invoke(sweep.main, ["mine.toml", *options.split()])
    assert swept.exit_code == 0, swept.exception
    found = json.loads(swept.stdout)
    assert found["sweep"].startswith("mine-")
    asks = [json.loads(line) for line in Path(found["ledger"]).open() if '"kind": "ask"' in line]
    assert {ask["values"]["depth"] for ask in asks} <= {1, 3}
    assert {ask["values"]["flip"] for ask in asks} == {True}


@pytest.mark.parametrize("file", ["mine.toml", "mine_space.py"])
def test_nothing_that_is_there_is_overwritten(here: Path, file: str) -> None:
    (here / file).write_text("mine")
    done = run("mine", "--data", "photos", "--space")
    assert isinstance(done.exception, DefinitionError)
    assert f"{file}: expected to be written anew" in str(done.exception)
    assert (here / file).read_text() == "mine"
    assert {path.name for path in here.iterdir()} == {"photos", file}


@pytest.mark.parametrize(
    ("name", "data", "error", "said"),
    [
        ("my pictures", "photos", DefinitionError, "expected letters, digits"),
        ("../mine", "photos", DefinitionError, "expected letters, digits"),
        ("mine", "nothing", DataError, "no such name or path"),
        ("mine", "photos/ship", DataError, "sub-folder"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    here: Path, name: str, data: str, error: type[Exception], said: str
) -> None:
    done = run(name, "--data", data, "--space")
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert {path.name for path in here.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("class Space", "expected ':' \\(own.py, line 1\\)"),
        ("import nothing_at_all", "No module named"),
        ("x = 1", "no attribute 'Space'"),
    ],
)
def test_a_file_that_is_no_space_is_refused(here: Path, text: str | None, said: str) -> None:
    if text is not None:
        (here / "own.py").write_text(text)
    with pytest.raises(DefinitionError, match=said):
        find_space("own.py:Space")


def test_a_space_that_was_edited_is_read_anew(here: Path) -> None:
    body = "from search_spaces import images\nclass Space(images.Space):\n    depth = ({},)\n"
    depths: list[Any] = []
    for depth in (1, 2):
        (here / "own.py").write_text(body.format(depth))
        depths.append(find_space("own.py:Space").depth)
    assert depths == [(1,), (2,)]
    assert find_space("own.py:Space") is find_space("own.py")


def test_a_drive_s_colon_names_no_class(here: Path) -> None:
    file = here / "C:\\my own.py"  # as Windows has it; a plain name elsewhere
    file.write_text("from search_spaces.images import Space\n")
    assert find_space(str(file)) is find_space(f"{file}:Space")


def test_a_sweep_does_not_go_on_with_a_space_that_was_edited(here: Path) -> None:
    run("mine", "--data", "photos", "--space")
    options = "--trials 1 --epochs 1 --workers 0 --no-final --json"
    assert CliRunner().invoke(sweep.main, ["mine.toml", *options.split()]).exit_code == 0
    file = here / "mine_space.py"
    file.write_text(file.read_text().replace("depth = (2, 3, 4)", "depth = (1, 3)"))
    more = CliRunner().invoke(sweep.main, ["mine.toml", *options.split(), "--trials", "2"])
    scoring = CliRunner().invoke(score.main, ["mine", "--workers", "0"])
    for refused in (more, scoring):
        assert isinstance(refused.exception, LedgerError)
        assert "that was edited since (mine_space.py:Space)" in str(refused.exception)


def test_a_space_may_have_any_depths(here: Path) -> None:
    (here / "own.py").write_text(
        "from search_spaces import images\nclass Space(images.Space):\n    depth = (2, 3, 6)\n"
    )
    space = find_space("own.py:Space")((128, 128, 3), 3, 20, Protocol(3))
    assert len(space.configure(space.hyperparameters({"depth": 6})).network.blocks) == 6


def test_the_images_are_those_of_datasets(here: Path) -> None:
    run("mine", "--data", "photos")
    first = (here / "mine.toml").read_text().splitlines()[0]
    loaded = datasets.load("photos")
    assert f"{len(loaded.train.labels)} training" in first
    assert "16x16x3, 3 classes" in first
