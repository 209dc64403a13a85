"""Limits: what a network costs, and whether that is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

Cost = Literal["parameters", "flops", "megabytes"]
# the seconds of an epoch are predicted, for one machine
Limit = Literal["parameters", "flops", "megabytes", "epoch_seconds"]


def costs_of(parameters: int, flops: int) -> dict[Limit, float]:
    """Return what a network costs: parameters, FLOPs of one image, megabytes of its weights."""
    return {"parameters": parameters, "flops": flops, "megabytes": 4e-6 * parameters}


def check(limit: str) -> str:
    """Return a limit as "<= 500_000" if it is one.

    Raises:
        ValueError: it is none.
    """
    sign, number = limit[:2], limit[2:]
    try:
        finite = 0 < float(number) < math.inf
    except ValueError:
        finite = False
    if sign not in ("<=", ">=") or not finite:
        raise ValueError(f"'<= NUMBER' or '>= NUMBER', the number above 0; received {limit!r}")
    return limit


def violations(costs: Mapping[Limit, float], limits: Mapping[Limit, str]) -> dict[Limit, float]:
    """Return by how much costs are beyond their limits, as the logarithm of the ratio; above 0."""
    return dict(_beyond(costs, limits))


def _beyond(
    costs: Mapping[Limit, float], limits: Mapping[Limit, str]
) -> Iterator[tuple[Limit, float]]:
    for name, limit in limits.items():
        ratio = math.log(costs[name] / float(limit[2:]))
        beyond = ratio if limit[:2] == "<=" else -ratio
        if beyond > 0:
            yield name, beyond
