"""The notebooks of examples/: executed from top to bottom, as somebody who opens them would."""

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "examples"
FIRST, OWN, READING = "tutorial_to_champion", "your_own_images", "reading_results"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every notebook after it was run, by name; all in one folder, as in examples/."""
    folder, found = tmp_path_factory.mktemp("notebooks"), {}
    for name in (FIRST, OWN, READING):
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
        ).execute()
        found[name] = notebook
    return found


def told(notebook: Any, *kinds: str) -> list[str]:
    """What its cells show: of each output that has one of these kinds, the first."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    streams = [o["text"] for o in outputs if o.get("name") == "stdout" and "stream" in kinds]
    return streams + [
        next(data[k] for k in kinds if k in data) for data in shown if {*kinds} & {*data}
    ]


def test_the_folder_has_no_other_and_none_keeps_what_it_showed_somewhere() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {FIRST, OWN, READING}
    for path in FOLDER.iterdir():
        cells = nbformat.read(path, as_version=4).cells
        assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_tutorial_ends_with_an_answer_and_the_champion_on_an_image(
    executed: dict[str, Any],
) -> None:
    notebook = executed[FIRST]
    assert len(told(notebook, "image/png")) == 2
    assert "test images right" in told(notebook, "stream")[-1]
    [trials, finals] = [shown for shown in told(notebook, "text/html") if "<table" in shown]
    assert "vgg_bn" in trials
    assert trials.count("<tr") == 2 + 4  # the columns, the name of the index, the trials
    assert finals.count("<tr") == 2 + 4  # two configurations, two seeds each
    assert "WARNING" not in "".join(told(notebook, "stream"))


def test_ones_own_images_are_split_searched_and_seen(executed: dict[str, Any]) -> None:
    notebook = executed[OWN]
    assert "('one', 'two', 'zero') (16, 16, 1)" in told(notebook, "stream")[0]
    assert "'two': " in told(notebook, "text/plain")[-1]


def test_results_are_read_without_training_again(executed: dict[str, Any]) -> None:
    notebook = executed[READING]
    said = [o["text"] for o in notebook.cells[1]["outputs"] if o.get("name") == "stderr"]
    assert "epoch" not in "".join(said)
    assert told(notebook, "stream")[-1] == told(executed[FIRST], "stream")[-1]
    assert len(told(notebook, "image/png")) == 1
    assert "best_val_accuracy" in told(notebook, "text/html")[-1]
