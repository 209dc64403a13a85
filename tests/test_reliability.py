"""Faults of benchmarks/reliability.py: some each day, all with `make test-all`."""

import datetime
import os
import random
import subprocess
import sys

import pytest
from reliability import FAULTS, Skipped
from sweeping import wait_until

from cnn_search import store

pytestmark = pytest.mark.slow

# others each day; the seed of one that failed is in the name of the test
SEED = int(os.environ.get("CNN_SEARCH_FAULT_SEED", datetime.date.today().toordinal()))
RUN = 2
CHEAP = (  # about a minute of one core each, or less
    "two drivers",
    "SIGTERM",
    "clock set back",
    "database locked",
    "disk full",
    "worker killed",
)


def todays():
    """Return the faults that are tried: others each day, unless all are asked for."""
    if "CNN_SEARCH_ALL_FAULTS" in os.environ:
        return [*FAULTS]
    return [CHEAP[(SEED * RUN + n) % len(CHEAP)] for n in range(RUN)]


@pytest.mark.parametrize("name", todays(), ids=lambda name: f"{name}-seed{SEED}")
def test_a_sweep_that_meets_a_fault_loses_and_doubles_nothing(tmp_path, name):
    try:
        found = FAULTS[name](tmp_path / "fault", random.Random(f"{SEED} {name}"), True)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert found.times >= 1, found
    assert (found.lost, found.doubled) == (0, 0), found


OPEN = """
import sys
from pathlib import Path
from cnn_search import store
store.open_store(Path(sys.argv[1]), "digits", create=True)
"""


def test_a_kill_while_mlflow_makes_its_tables_leaves_no_database_that_it_refuses(
    tmp_path, monkeypatch
):
    process = subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path)])
    assert wait_until(lambda: any(f.stat().st_size for f in tmp_path.glob("mlflow.db.*partial")))
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(store, "_create", store._create.__wrapped__)
    opened = store.open_store(tmp_path, "digits", create=True)
    assert opened.client().search_experiments()
    assert not list(tmp_path.glob("*partial*"))
