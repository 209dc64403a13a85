"""What all tests share: Keras set for one thread before anything imports it, and real data."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn_search import backend

backend.prepare(threads=1)
backend.load()
gc.collect()
gc.freeze()  # as the engines do: Keras collects garbage before each training

ROOT = Path(__file__).parent.parent


LONGEST = (
    *("test_search.py", "test_kill.py", "test_final.py", "test_replay.py", "test_engines.py"),
    *("test_faults.py", "test_reliability.py", "test_tracking.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first, so that two workers end together."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else 9)


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
