"""What all tests share: Keras set for one thread before anything imports it, and real data."""

import contextlib
import functools
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn_search import backend

backend.prepare(threads=1)
backend.load()
gc.collect()
gc.freeze()  # as the engines do: Keras collects garbage before each training

from cnn_search import store  # noqa: E402

ROOT = Path(__file__).parent.parent


LONGEST = (
    *("test_search.py", "test_kill.py", "test_final.py", "test_replay.py", "test_engines.py"),
    *("test_faults.py", "test_reliability.py", "test_tracking.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first, so that two workers end together."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else 9)


@pytest.fixture(scope="session", autouse=True)
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let MLflow make its tables once, for seconds; stores of this process begin with a copy."""
    create = store._create
    empty = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create(empty)

    @functools.wraps(create)
    def copy(database: Path) -> None:
        with contextlib.suppress(OSError):  # what is wrong with the folder, the real one says
            database.parent.mkdir(parents=True, exist_ok=True)
            partial = database.with_name("mlflow.db.copied")
            shutil.copyfile(empty, partial)
            with contextlib.suppress(FileExistsError):
                os.link(partial, database)
            partial.unlink()
        create(database)

    store._create = copy


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real CIFAR-10 and SIGNS, or skip with the reason."""
    folder = Path(os.environ.get("CNN_SEARCH_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10.npz").exists():
        pytest.skip(f"no cifar10.npz in {folder}; set CNN_SEARCH_DATA_DIR")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Open the system's Chromium, or skip with the reason."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"no Chromium at {chromium}")
    with playwright.sync_playwright() as found:
        opened = found.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield opened
        opened.close()
