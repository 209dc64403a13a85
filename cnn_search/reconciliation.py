"""Reconciliation: ledgers, MLflow and files of sweeps, examined one after another.

What is fixed before the next finding is asked for does not come up again: first what the record
itself needs, then MLflow, then what may be deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, first_line, open_store  # isort: skip
from mlflow.exceptions import MlflowException

from cnn_search import discrepancies
from cnn_search.errors import LedgerError, TrackingError
from cnn_search.findings import Finding, Sweep
from cnn_search.ledger import ENDED, Ledger, hold, size_of, sweeps_folder


def sweep_folders(mlruns: Path, name: str | None) -> list[Path]:
    """Return the folders of all sweeps, or of those called `name`, the oldest first."""
    found = sorted(file.parent for file in sweeps_folder(mlruns).glob("*/ledger.jsonl"))
    return [folder for folder in found if name in (None, _name(folder))]


def _name(folder: Path) -> str:
    return folder.name.rsplit("-", 2)[0]


def examine(mlruns: Path, name: str | None, *, fixing: bool) -> Iterator[Finding]:
    """Yield what is wrong with the sweeps called `name`, or with all.

    Args:
        mlruns: The folder of ledgers, and of MLflow's own store.
        name: Of sweeps; None for all.
        fixing: Hold a sweep until all of its findings were taken; else nothing is written.
    """
    folders = sweep_folders(mlruns, name)
    usable = True
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        usable = yield from _check_database(mlruns / "mlflow.db", needed=bool(folders))
    stores = (yield from _open_stores(mlruns, folders)) if usable else {}
    for folder in folders:
        yield from _examine_sweep(Sweep(folder), stores.get(_name(folder)), fixing)

    def known() -> set[str]:
        return {folder.name for folder in sweep_folders(mlruns, None)}

    for store in list(stores.values())[:1]:
        yield from _asked(partial(discrepancies.find_strangers, store, name, known))


def _open_stores(mlruns: Path, folders: list[Path]) -> Generator[Finding, None, dict[str, Store]]:
    """Yield why MLflow cannot be asked, each reason once; return the stores that can be."""
    stores: dict[str, Store] = {}
    told: set[str] = set()
    for name in dict.fromkeys(map(_name, folders)) or ["Default"]:
        try:
            stores[name] = open_store(mlruns, name)
        except TrackingError as error:
            if (said := str(error)) not in told:
                told.add(said)
                where, what = said.split(": ", 1)
                yield Finding(where, what)
    return stores


def _asked(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check that asks MLflow, which may go away meanwhile."""
    try:
        yield from check()
    except (MlflowException, TrackingError) as error:
        yield Finding("MLflow", f"it does not answer any more: {first_line(error)}", "Try again.")


def _examine_sweep(sweep: Sweep, store: Store | None, fixing: bool) -> Iterator[Finding]:
    with contextlib.ExitStack() as held:
        try:
            if fixing or (sweep.folder / "lock").exists():
                held.enter_context(hold(sweep.folder))
        except LedgerError:
            yield Finding(sweep.name, "running: a driver holds it, so it is left alone", note=True)
            return
        if not fixing:
            held.close()
        try:
            sweep.read()
        except LedgerError as error:
            yield Finding(sweep.name, str(error))
            return
        yield from _check_ledger(sweep)
        if not sweep.record.header:  # killed before its first line
            return
        if store is not None:
            yield from _asked(partial(discrepancies.compare, sweep, store))
        for what, found in _garbage(sweep).items():
            if found:
                what, remedy = f"{what} ({len(found)})", f"delete {_megabytes(found)}"
                yield Finding(sweep.name, what, remedy, partial(_delete, found))


# The database of our own


def _check_database(database: Path, *, needed: bool) -> Generator[Finding, None, bool]:
    """Yield what is wrong with it; return whether it can be opened."""

    def create() -> str:
        open_store(database.parent, "Default", create=True)
        return "made"

    def switch() -> str:
        return f"journal mode is {_pragma(database, 'journal_mode=WAL')}"

    if needed and not database.exists():
        what = "MLflow's database is not there"
        yield Finding(str(database), what, "make it, and deliver the ledgers into it", create)
    if not database.exists():
        return False
    try:
        mode = _pragma(database, "journal_mode")
    except sqlite3.Error as error:
        what = f"expected an SQLite database; received {first_line(error)}"
        remedy = "Restore it from a copy, or move it away: then --fix makes one from the ledgers."
        yield Finding(str(database), what, remedy)
        return False
    if mode != "wal":
        what = f"its journal mode is {mode}, which doubles the time of a write"
        yield Finding(str(database), what, "switch it to WAL", switch)
    return True


def _pragma(database: Path, pragma: str) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return str(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


# The ledger, and the files of the sweep's folder


def _check_ledger(sweep: Sweep) -> Iterator[Finding]:
    path = sweep.folder / "ledger.jsonl"

    def cut() -> str:
        ledger = Ledger(path)
        ledger.open()
        ledger.close()
        return "cut off"

    if torn := path.stat().st_size - sweep.size:
        what = f"its ledger's last line is torn ({torn} bytes of a write that a kill cut short)"
        yield Finding(sweep.name, what, "cut it off, as the sweep does when it goes on", cut)
    for library in sorted({name for versions in sweep.versions for name in versions}):
        used = list(dict.fromkeys(v.get(library, "none") for v in sweep.versions))
        if len(used) > 1:
            what = f"its sessions had {library} {', then '.join(used)}: curves may differ by that"
            yield Finding(sweep.name, what, note=True)


def _garbage(sweep: Sweep) -> dict[str, list[Path]]:
    """Return what nobody needs while no driver is there, by what it is."""
    record, folder = sweep.record, sweep.folder
    trials, finals = record.trials.values(), list(record.finals.values())
    needed = {number for t in trials if t.status not in ENDED for number in (t.number, t.parent)}
    if record.definition["oracle"]["kind"] == "hyperband" and record.end != "finished":
        needed |= set(record.trials)  # they may be promoted
    ended = [trial for trial in [*trials, *finals] if trial.status in ENDED]
    saved = [t for t in ended if t.source == "final" or t.number not in needed]
    found = {
        "checkpoints of trials that ended": [t.folder(folder) / "checkpoint.npz" for t in saved],
        "other weights of retrainings that were scored": [
            trial.folder(folder) / f"{weights}.keras"
            for trial in (finals if record.scored else [])
            for weights in ("best", "last")
        ],
        "copies of the images for workers": [folder / "images", folder / "final" / "images"],
        "files that a kill left half written": sorted(folder.rglob("*.partial*")),
    }
    return {what: [path for path in paths if path.exists()] for what, paths in found.items()}


def _megabytes(paths: list[Path]) -> str:
    return f"{size_of(*paths) / 1e6:,.1f} MB"


def _delete(paths: list[Path]) -> str:
    freed = _megabytes(paths)
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return f"{freed} freed"
