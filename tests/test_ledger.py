"""The ledger: every line counts, and what is damaged is noticed."""

import json
import os
import resource

import pytest

from cnn_search.errors import LedgerError
from cnn_search.ledger import Ledger, Record, read_events, read_record, size_of

HEADER = {
    "sweep": "digits-1",
    "definition": {"training": {"epochs": 3}, "objective": "val_accuracy"},
    "direction": "max",
}


def ask(ledger: Ledger, number: int, **changes):
    fields = {
        "values": {"filters_1": number},
        "seed": 1,
        "epochs": 3,
        "parent": None,
        "source": "oracle",
        "baseline": "",
        "oracle": {},
    }
    ledger.append("ask", trial=number, **{**fields, **changes})


def finish(
    ledger: Ledger,
    number: int,
    score: float,
    loss: float = 1.0,
    parameters: int = 5,
    **fields: int,
):
    ledger.append("start", trial=number, attempt=1, threads=1, backend="tensorflow")
    metrics = {"val_accuracy": score, "val_loss": loss}
    ledger.append("epoch", trial=number, attempt=1, epoch=1, metrics=metrics, seconds=1.5)
    ledger.append(
        "done",
        trial=number,
        attempt=1,
        score=score,
        metrics=metrics,
        parameters=parameters,
        flops=1,
        **fields,
    )


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.jsonl")
    made.open()
    made.append("sweep", **HEADER)
    made.append("session", versions={"keras": "3"}, pid=1)
    yield made
    made.close()


def test_what_was_appended_is_read_again(ledger):
    ask(ledger, 0)
    finish(ledger, 0, 0.5)
    record = read_record(ledger.path)
    assert record == ledger.record
    assert record.trials[0].status == "finished"
    assert record.trials[0].curve == {1: {"val_accuracy": 0.5, "val_loss": 1.0}}
    assert [event["n"] for event, _ in read_events(ledger.path)] == list(range(1, 7))
    for line in ledger.path.read_text().splitlines():
        json.loads(line)


def test_reading_from_an_offset_goes_on_there(ledger):
    events = list(read_events(ledger.path))
    ask(ledger, 0)
    rest = list(read_events(ledger.path, events[-1][1]))
    assert [event["kind"] for event, _ in rest] == ["ask"]


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_torn_last_line_is_cut_off_with_a_note(ledger, kept):
    ask(ledger, 0)
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    again = Ledger(ledger.path)
    again.open()
    assert "the last line was torn" in again.notes[0]
    assert again.record.trials == {}
    ask(again, 0)
    again.close()
    assert len(list(read_events(ledger.path))) == 3


@pytest.mark.parametrize("damage", ["flip", "first", "missing", "half", "empty"])
def test_a_damaged_line_elsewhere_is_refused_and_the_file_left_as_it_was(ledger, damage):
    ask(ledger, 0)
    finish(ledger, 0, 0.5)
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    if damage == "flip":
        lines[4] = lines[4].replace(b"0.5", b"0.9")
    elif damage in ("first", "missing"):
        del lines[3 if damage == "missing" else 0]
    elif damage == "half":
        lines[2] = lines[2][:20] + b"\n"
    else:
        lines[2] = b"\n"
    ledger.path.write_bytes(b"".join(lines))
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: line \d is damaged .* --new"):
        Ledger(ledger.path).open()
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    ("recorded", "typed"),
    [
        ("sweep.py flowers.toml --data-dir 'my data' --new", "flowers.toml --data-dir 'my data'"),
        ("pytest -q", "digits"),
        ("", "digits"),
    ],
)
def test_the_command_that_goes_on_is_the_one_on_record(recorded, typed):
    record = Record(header={"definition": {"name": "digits"}}, command=recorded)
    assert record.sweep_command() == f"python -m cnn_search.sweep {typed}"
    assert record.sweep_command("--new") == f"python -m cnn_search.sweep {typed} --new"


def test_ranking_breaks_ties_by_loss_then_by_size_and_counts_full_fidelity_only(ledger):
    for number, (score, loss, parameters, epochs) in enumerate(
        [(0.5, 1.0, 5, 3), (0.9, 0.1, 1, 1), (0.7, 0.9, 9, 3), (0.7, 0.8, 9, 3), (0.7, 0.8, 4, 3)]
    ):
        ask(ledger, number, epochs=epochs)
        finish(ledger, number, score, loss, parameters)
    assert [trial.number for trial in ledger.record.ranking()] == [4, 3, 2, 0]


def test_ranking_groups_equal_configurations(ledger):
    for number, score in enumerate([0.5, 0.6]):
        ask(ledger, number, values={"filters_1": 8})
        finish(ledger, number, score)
    assert [trial.number for trial in ledger.record.ranking()] == [1]


def test_ranking_groups_networks_that_differ_in_blocks_left_out(ledger):
    for number, padding in enumerate(["same", "valid"]):
        ask(ledger, number, values={"depth": 2, "filters_1": 8, "padding_2": padding})
        finish(ledger, number, 0.5, blocks_dropped=1)
    assert [trial.number for trial in ledger.record.ranking()] == [0]


def test_seconds_are_summed_over_sessions_without_the_time_between(ledger, monkeypatch):
    times = iter([100.0, 160.0, 1000.0, 1030.0])
    monkeypatch.setattr("cnn_search.ledger.time.time", lambda: next(times))
    start = ledger.record.last_time
    ledger.append("session", versions={}, pid=1)
    ledger.append("end", reason="interrupted")
    ledger.append("session", versions={}, pid=2)
    ledger.append("end", reason="finished")
    assert start > 0
    assert ledger.record.seconds == pytest.approx(90.0, abs=0.5)


def test_an_event_is_on_the_disk_before_append_returns(ledger, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr("cnn_search.ledger.os.fsync", lambda fd: synced.append(real(fd)))
    ask(ledger, 0)
    assert len(synced) == 1
    assert list(read_events(ledger.path))[-1][0]["kind"] == "ask"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_closes_the_ledger_and_the_next_open_goes_on(ledger, monkeypatch, error):
    def fail(descriptor):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("cnn_search.ledger.os.fsync", fail)
        with pytest.raises((LedgerError, KeyboardInterrupt)):
            ask(ledger, 0)
    with pytest.raises(LedgerError, match="an earlier write failed"):
        ask(ledger, 1)
    again = Ledger(ledger.path)
    again.open()
    again.append("end", reason="crashed")
    again.close()
    assert read_record(ledger.path).end == "crashed"


def test_a_line_that_the_disk_takes_a_part_of_closes_the_ledger_and_is_cut_off(ledger):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = ledger.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))  # a write is then a short one
    try:
        with pytest.raises(LedgerError, match="No space left on device"):
            ask(ledger, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.path.stat().st_size == size + 20
    with pytest.raises(LedgerError, match="an earlier write failed"):  # there is space again
        ask(ledger, 0)
    again = Ledger(ledger.path)
    again.open()
    ask(again, 0)
    again.close()
    assert list(read_record(ledger.path).trials) == [0]


def test_weights_are_kept_of_the_best_and_of_who_may_be_registered(ledger):
    ledger.record.header["definition"]["registry"] = {"within": 0.03}
    # score and parameters; the third is cheaper than all better ones, the fourth than none
    for number, (score, size) in enumerate([(0.9, 50), (0.89, 40), (0.88, 30), (0.875, 30)]):
        ask(ledger, number)
        finish(ledger, number, score, parameters=size)
    ask(ledger, 4)
    finish(ledger, 4, 0.86, parameters=1)  # too far behind the best
    kept = ledger.record.kept(1)
    assert [trial.number for trial in kept] == [0, 1, 2]
    assert ledger.record.choice(ledger.record.ranking()).number == 2
    ask(ledger, 5)
    finish(ledger, 5, 0.915, parameters=60)  # leaves the third behind
    assert ledger.record.choice(ledger.record.ranking()) in kept


def test_the_size_of_a_folder_is_that_of_its_files_and_what_goes_counts_nothing(
    tmp_path, monkeypatch
):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(70))
    (tmp_path / "other").write_bytes(bytes(30))
    assert size_of(tmp_path) == 100
    assert size_of(tmp_path / "other", tmp_path / "none") == 30
    monkeypatch.setattr("os.walk", lambda path: [(str(tmp_path), [], ["other", "gone"])])
    assert size_of(tmp_path) == 30
