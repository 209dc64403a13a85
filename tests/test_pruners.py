"""Pruners: who is ended early, and that a replay comes to the same decisions."""

import pytest

from cnn_search.definition import PrunerTable
from cnn_search.pruners import Pruner

KINDS = ["asha", "median", "percentile"]


def curve(level: float, epochs: int = 9) -> list[float]:
    """Return made-up accuracies that rise to about `level`."""
    return [level * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)]


def run(pruner: Pruner, number: int, values: list[float]) -> int:
    """Report epoch after epoch; return after how many the trial was ended."""
    for epoch, value in enumerate(values, start=1):
        if pruner.report(number, epoch, value):
            pruner.end(number, None)
            return epoch
    pruner.end(number, values[-1])
    return len(values)


def make(kind: str, **options) -> Pruner:
    table = PrunerTable(kind=kind, first_epoch=2, startup_trials=3, **options)
    return Pruner(table, "max", epochs=9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_worse_are_ended_and_the_better_are_not(kind):
    pruner = make(kind)
    assert [run(pruner, n, curve(level)) for n, level in enumerate([0.5, 0.6, 0.7])] == [9] * 3
    assert run(pruner, 3, curve(0.1)) == 2
    assert run(pruner, 4, curve(0.9)) == 9


def test_nobody_is_ended_without_a_pruner():
    pruner = Pruner(PrunerTable(), "max", epochs=9)
    assert [run(pruner, n, curve(1 / (n + 1))) for n in range(6)] == [9] * 6


def test_of_a_loss_the_larger_is_the_worse():
    pruner = Pruner(PrunerTable(kind="asha", first_epoch=2), "min", epochs=9)
    assert [run(pruner, n, curve(level)) for n, level in enumerate([0.5, 0.9, 0.1])] == [9, 2, 9]


def test_asha_ends_at_its_rungs_alone():
    pruner = make("asha", factor=2)
    assert PrunerTable(kind="asha", first_epoch=2, factor=2).rungs(9) == [2, 4, 8]
    ended = [run(pruner, n, curve(0.5 + ((7 * n) % 31) / 100)) for n in range(31)]
    assert {2, 4, 9} <= set(ended) <= {2, 4, 8, 9}


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_decides_alike_also_of_epochs_that_came_twice(kind):
    levels = [0.5 + ((7 * n) % 31) / 100 for n in range(31)]
    pruner, again = make(kind), make(kind)
    first = [run(pruner, n, curve(level)) for n, level in enumerate(levels)]
    second = []
    for number, level in enumerate(levels):
        values = curve(level)
        assert not again.report(number, 1, values[0])
        assert not again.report(number, 1, values[0])  # a second attempt
        ended = 9
        for epoch in range(2, 10):
            if again.report(number, epoch, values[epoch - 1]):
                ended = epoch
                break
        again.end(number, None if ended < 9 else values[-1])
        second.append(ended)
    assert first == second
    assert min(first) == 2
    assert max(first) == 9


def test_rungs_begin_at_a_ninth_unless_told():
    assert PrunerTable(kind="asha").rungs(27) == [3, 9]
    assert PrunerTable(kind="asha").rungs(10) == [2, 6]
    assert PrunerTable(kind="median").rungs(8) == [1, 2, 3, 4, 5, 6, 7]
    assert PrunerTable().rungs(27) == []
