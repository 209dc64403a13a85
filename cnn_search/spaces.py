"""Spaces: what may vary, narrowed by a definition; and whether values are a point of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import keras_tuner
from keras_tuner.engine import hyperparameters as kinds

from cnn_search.errors import DefinitionError

TAKEN = ("epochs", "seed")  # parameters of each run in MLflow


def declared(space: Any) -> Any:
    """Return the hyperparameters that a space declares.

    Raises:
        DefinitionError: it has a name twice, or values that are none, or that a record cannot keep.
    """
    where = f"search_space: {type(space).__module__}:{type(space).__name__}"
    try:
        found = space.hyperparameters()
    except (TypeError, ValueError, LookupError) as error:  # KerasTuner's, or its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DefinitionError(
            f"{where}: expected lists of numbers, texts or truth values, one at least in each; "
            f"received {reason} Correct the space."
        ) from None
    names = [hp.name for hp in found.space]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DefinitionError(
            f"{where}: expected each name once, as oracles and records go by it; received "
            f"{', '.join(twice)} twice. Rename one."
        )
    for hp in found.space:
        if not re.fullmatch(r"[\w /.:-]+", hp.name) or hp.name in TAKEN:
            raise DefinitionError(
                f"{where}: expected names of letters, digits, spaces and _ - . : / , as MLflow "
                f"takes, and not {' or '.join(TAKEN)}, which it has of each run; received "
                f"{hp.name!r}. Rename it."
            )
        for value in hp.values:
            if isinstance(value, float) and not math.isfinite(value):
                raise DefinitionError(
                    f"{where}: {hp.name}: expected finite numbers; received {value}. Leave it out."
                )
    return found


def fingerprint(space: Any) -> str:
    """Return a digest of declared hyperparameters: names, values, conditions; not of defaults."""
    told = [
        {k: v for k, v in entry.get_config().items() if k != "default"} for entry in space.space
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def outside(space: Any, values: Mapping[str, Any]) -> list[str]:
    """Return the names of those `values` that a space does not know, or does not allow."""
    filled = space.copy()
    filled.values = dict(values)
    entries = {hp.name: hp for hp in space.space if filled.is_active(hp)}
    return [n for n, v in values.items() if n not in entries or coerce(entries[n], v) is None]


def coerce(hp: Any, value: Any) -> Any:
    """Return `value` as a hyperparameter has it (0 as 0.0 among floats), or None if it cannot.

    A float with steps has them as KerasTuner computes them, .3 as .30000000000000004.
    """
    if _is_range(hp):
        kind, numbers = (int, int) if isinstance(hp, kinds.Int) else (float, int | float)
        number = isinstance(value, numbers) and not isinstance(value, bool)
        return kind(value) if number and hp.min_value <= value <= hp.max_value else None
    if isinstance(hp, kinds.Float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return next(
            (v for v in hp.values if number and math.isclose(v, value, abs_tol=1e-12)), None
        )
    truth = isinstance(value, bool)
    same = [v for v in hp.values if isinstance(v, bool) == truth and v == value]
    return same[0] if same else None


def _is_range(hp: Any) -> bool:
    """Return whether a hyperparameter has any number between two, or any whole one."""
    return isinstance(hp, kinds.Float | kinds.Int) and hp.step is None


def allowed(hp: Any) -> str:
    """Return in words what a hyperparameter can take."""
    if _is_range(hp):
        return f"{hp.min_value} to {hp.max_value}"
    return ", ".join(json.dumps(value) for value in hp.values)


def narrow(space: Any, table: Mapping[str, Any], over: list[str] | None = None) -> Any:
    """Return the space with some hyperparameters fixed to a value or narrowed to a list of values.

    Args:
        space: Declared `keras_tuner.HyperParameters`.
        table: A value, or a list of values, by name.
        over: If given, everything else is fixed at its default.

    Raises:
        DefinitionError: an unknown name, or a value that the space does not have; all at once.
    """
    names = [hp.name for hp in space.space]
    problems = [
        f"{where}: no such hyperparameter; the space has {', '.join(sorted(names))}."
        for where, name in [
            *((f"[space] {name}", name) for name in table),
            *((f"[oracle] over: {name}", name) for name in over or []),
        ]
        if name not in names
    ]
    narrowed = keras_tuner.HyperParameters()
    for hp in space.space:
        fixed = [hp.default] if over is not None and hp.name not in over else None
        values = table.get(hp.name)
        if values is None:  # a default need not be one of KerasTuner's steps
            narrowed.merge([_choice(hp, fixed) if fixed else hp])
            continue
        values = values if isinstance(values, list) else [values]
        bad = [value for value in values if coerce(hp, value) is None]
        if bad or not values:
            problems.append(
                f"[space] {hp.name}: expected {allowed(hp)}; received {json.dumps(bad)}."
            )
            continue
        values = [coerce(hp, value) for value in values]
        narrowed.merge([_choice(hp, values)])
    if problems:
        raise DefinitionError("\n".join(problems))
    return narrowed


def size(space: Any, most: int) -> int:
    """Return how many points a space has, counted up to `most`; as many if it is continuous."""
    filled = keras_tuner.HyperParameters()
    filled.merge(space.space)

    def count(entries: list[Any]) -> int:
        if not entries:
            return 1
        hp, *rest = entries
        filled.values.pop(hp.name, None)
        if not filled.is_active(hp):
            return count(rest)
        if _is_range(hp):
            return most
        found = 0
        for value in hp.values:
            filled.values[hp.name] = value
            found += count(rest)
            if found >= most:
                break
        return min(found, most)

    return count(list(space.space))


def with_defaults(space: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all hyperparameters that are active, defaults where none is given.

    Values of names that the space does not have are kept.
    """
    hps = space.copy()
    hps.values = dict(values)
    for hp in space.space:  # parents come first; KerasTuner's own filling-in is random
        if hps.is_active(hp):
            hps.values.setdefault(hp.name, hp.default)
    active = {hp.name: hps.values[hp.name] for hp in space.space if hps.is_active(hp)}
    names = {hp.name for hp in space.space}
    return {**active, **{name: value for name, value in values.items() if name not in names}}


def complete(space: Any, baseline: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole configuration: `values` on top of a baseline's, defaults for the rest.

    Raises:
        DefinitionError: a name or value that the space does not have.
    """
    entries = {hp.name: hp for hp in space.space}
    known = {n: coerce(entries[n], v) for n, v in values.items() if n in entries}
    given = {n: v for n, v in known.items() if v is not None}
    usual = {name: value for name, value in baseline.items() if name in entries}
    whole = with_defaults(space, {**usual, **given})
    for name, value in values.items():
        if name not in entries:
            expected = f"a hyperparameter of the space ({', '.join(entries)})"
        elif known[name] is None:
            expected = allowed(entries[name])
        elif name not in whole:
            expected = f"nothing: with the other values {name} has no effect"
        else:
            continue
        raise DefinitionError(f"--try {name}={value}: expected {expected}. Correct it.")
    return whole


def _choice(hp: Any, values: list[Any]) -> Any:
    """Return `hp` narrowed to `values`, which it has."""
    if len(values) == 1:
        return kinds.Fixed(hp.name, values[0], conditions=hp.conditions)
    if isinstance(hp, kinds.Boolean):
        return hp
    default = hp.default if hp.default in values else values[0]
    return kinds.Choice(hp.name, values, default=default, conditions=hp.conditions)
