"""The subject of a search: what a definition means in terms of spaces and training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_search.definition import Definition
from cnn_search.spaces import narrow
from cnn_search.training import Protocol, Setup


def searched(definition: Definition, space: Any) -> Any:
    """Return what a definition leaves to vary of a declared space.

    Raises:
        DefinitionError: it names what the space does not have.
    """
    over = definition.oracle.over if definition.oracle.kind == "grid" else None
    return narrow(space, definition.space, over)


def baseline_values(space: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the values of baselines by name: the space's first if none are named, "all" for each.

    Raises:
        DefinitionError: there is no such baseline.
    """
    names = names or [next(iter(space.baselines))]
    return {n: space.baseline_values(n) for n in (space.baselines if names == ["all"] else names)}


def setup_of(definition: Definition, folder: Path) -> Setup:
    """Return what all trials of a sweep share."""
    table = definition.training
    return Setup(
        space=definition.search_space,
        protocol=Protocol(table.epochs, table.patience, table.monitor, table.weights),
        folder=folder,
        objective=definition.objective,
        class_weights=table.class_weights,
        precision=table.precision,
        checkpoint_seconds=table.checkpoint_seconds,
        keep_state=definition.oracle.kind == "hyperband",
        limits=definition.constraints,
    )
