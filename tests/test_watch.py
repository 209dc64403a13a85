"""Tests of `watch`: what it says of a ledger that was cut anywhere; and that it does no harm."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from cnn_search import dashboard, watch
from cnn_search.dashboard import Dashboard
from cnn_search.errors import LedgerError
from cnn_search.ledger import read_events, read_record
from cnn_search.progress import time_left

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def cut(tmp_path: Path, sweep: str, events: int | None = None) -> Path:
    """Makes the folder of a published sweep, with its first events alone; returns mlruns."""
    source = RESULTS / f"{sweep}.jsonl"
    name = read_record(source).header["sweep"]
    folder = tmp_path / "mlruns" / "sweeps" / name
    folder.mkdir(parents=True)
    lines = source.read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:events]))
    return tmp_path / "mlruns"


def shown(mlruns: Path, width: int = 160, height: int = 0) -> list[str]:
    board = Dashboard(next((mlruns / "sweeps").iterdir()))
    board.look()
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    console.print(board.draw(width, height))
    return console.export_text().splitlines()


def index_of(sweep: str, kind: str, skip: int = 0) -> int:
    """Returns the number of the event behind the first of a kind after so many."""
    found = [event["n"] for event, _ in read_events(RESULTS / f"{sweep}.jsonl")]
    kinds = [event["kind"] for event, _ in read_events(RESULTS / f"{sweep}.jsonl")]
    return int([n for n, k in zip(found, kinds, strict=True) if k == kind][skip])


def test_a_finished_search_says_best_rungs_and_every_trial(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "digits", index_of("digits", "end"))
    record = read_record(next((mlruns / "sweeps").iterdir()) / "ledger.jsonl")
    lines = shown(mlruns)
    assert lines[0] == f"{record.header['sweep']}: search ended: {record.end}"
    best = record.ranking()[0]
    assert lines[1].endswith(f"-> {best.result['score']:.4f}")
    rows = [line for line in lines if re.match(r"\s*(\* )?\d+ ", line)]
    assert len(rows) == len(record.trials)
    (starred,) = [line for line in rows if "*" in line]
    assert f"* {best.number} " in starred
    assert f"{best.result['parameters']:,}" in starred
    statuses = [re.sub(r"\s*(\* )?\d+\s+", "", row, count=1).split()[0] for row in rows]
    assert statuses == [trial.status for trial in record.trials.values()]


def test_rungs_are_counted(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "cifar10", index_of("cifar10", "end"))
    (rungs,) = [line for line in shown(mlruns) if line.startswith("rungs")]
    # of 18, one was cut short by the end of its minutes
    assert rungs == "rungs  epoch 1: 18 came, 12 ended; epoch 3: 6 came, 2 ended"


def test_a_running_trial_has_its_epoch_and_the_time_left(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "digits", index_of("digits", "epoch", 9))
    lines = shown(mlruns)
    assert "search, trial 1 of 30; about" in lines[0]
    assert " left; last written " in lines[0]
    (running,) = [line for line in lines if line.startswith("trial 0 ")]
    assert "██████████·········· 10/20" in running


def test_a_final_scoring_has_its_own_trials(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "digits", index_of("digits", "retrain", 6) + 3)
    lines = shown(mlruns)
    assert "final scoring, trial 7 of 20; about" in lines[0]
    assert len([line for line in lines if "vgg_bn" in line]) >= 1


def test_an_ablation_has_no_time_left_of_the_scoring(tmp_path: Path) -> None:
    record = read_record(next((cut(tmp_path, "digits") / "sweeps").iterdir()) / "ledger.jsonl")
    assert record.scored
    assert time_left(record, 400, None) == "ablation"


def test_epochs_that_patience_saved_are_not_left(tmp_path: Path) -> None:
    record = read_record(next((cut(tmp_path, "digits") / "sweeps").iterdir()) / "ledger.jsonl")
    record.job = "search"
    trials = list(record.trials.values())
    trained = sum(len(trial.curve) for trial in trials)
    planned = sum(trial.epochs for trial in trials)
    assert trained < planned
    for trial in trials:  # as if all had finished early
        trial.status, trial.result = "finished", {"epochs": len(trial.curve)}
    assert time_left(record, planned, None) == "about 0 s left"


def test_what_an_earlier_plan_trained_is_no_part_of_the_time_left(tmp_path: Path) -> None:
    # its third finalist was given up; then five seeds of two, two of which were trained
    mlruns = cut(tmp_path, "fashion_mnist", index_of("fashion_mnist", "retrain", 3) + 2)
    state = shown(mlruns)[0]
    # 21 of 100 epochs in 354 s; with the four of the one that was given up it would be 31 min
    assert "final scoring, trial 3 of 10; about 22 min left" in state


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("height", [12, 24])
def test_the_board_fits_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    mlruns = cut(tmp_path, "digits", index_of("digits", "ask", 25))
    lines = shown(mlruns, width, height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    assert "older ones above" in "\n".join(lines)
    assert re.match(r"\s*25 ", lines[-1])


def test_every_cut_of_a_ledger_can_be_shown(tmp_path: Path) -> None:
    # a board that looks after each event sees what one does that looks once
    mlruns = cut(tmp_path, "cifar10")
    path = next((mlruns / "sweeps").iterdir()) / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    board, console = Dashboard(path.parent), Console(width=100, file=open(os.devnull, "w"))
    for count in range(len(lines) + 1):
        path.write_bytes(b"".join(lines[:count]) + lines[count - 1][: count % 7])
        board.look()
        console.print(board.draw(100, 20))
    assert board.record == read_record(path)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0.5], "▁"),
        ([0.1, 0.1], "▁▁"),
        ([0.0, 0.5, 1.0], "▁▅█"),
        (list(range(80)), None),
    ],
)
def test_the_line_of_blocks(values: Sequence[float], line: str | None) -> None:
    drawn = dashboard._line(values)
    assert line is None or drawn == line
    assert len(drawn) <= 40
    assert sorted(drawn) == list(drawn)


def test_the_command_shows_the_sweep_that_was_written_to_last(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "digits")
    old = cut(tmp_path / "old", "signs")
    signs = next((old / "sweeps").iterdir())
    shutil.move(signs, mlruns / "sweeps" / signs.name)
    os.utime(mlruns / "sweeps" / signs.name / "ledger.jsonl", (1, 1))
    done = CliRunner().invoke(watch.main, ["--mlruns", str(mlruns)])
    assert done.output.startswith("digits-")
    done = CliRunner().invoke(watch.main, ["signs", "--mlruns", str(mlruns)])
    assert done.output.startswith("signs-")


@pytest.mark.parametrize("name", [[], ["nothing"]])
def test_without_a_sweep_one_line(tmp_path: Path, name: list[str]) -> None:
    done = CliRunner().invoke(watch.main, [*name, "--mlruns", str(tmp_path)])
    assert isinstance(done.exception, LedgerError)
    assert "there is none" in str(done.exception)


def _own_terminal() -> None:
    """Make the terminal that is standard input the process's own, whose Ctrl-C reaches it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_on_a_terminal_it_follows_until_ctrl_c_and_writes_nothing(tmp_path: Path) -> None:
    mlruns = cut(tmp_path, "digits", index_of("digits", "epoch", 9))
    path = next((mlruns / "sweeps").iterdir()) / "ledger.jsonl"
    before = path.read_bytes()
    control, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cnn_search.watch", "--mlruns", str(mlruns)],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        preexec_fn=_own_terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(terminal)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        while b"10/20" not in seen and time.monotonic() < deadline:
            seen += os.read(control, 65536)
        event = {"n": json.loads(before.splitlines()[-1])["n"]}
        lines = (RESULTS / "digits.jsonl").read_bytes().splitlines(keepends=True)
        with path.open("ab") as file:  # the sweep goes on by an epoch
            file.write(lines[event["n"]])
        while b"11/20" not in seen and time.monotonic() < deadline:
            seen += os.read(control, 65536)
    finally:
        os.write(control, b"\x03")  # Ctrl-C, as a terminal sends it
        assert process.wait(30) == 130
    assert b"11/20" in seen
    assert path.read_bytes() == before + lines[event["n"]]
    assert [file.name for file in path.parent.iterdir()] == ["ledger.jsonl"]
    os.close(control)
    assert process.stderr is not None
    assert process.stderr.read().strip() == b"interrupted"
