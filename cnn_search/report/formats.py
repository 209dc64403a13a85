"""Formats: how numbers become texts of the report."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from cnn_search.progress import duration


def score_text(score: float | None) -> str:
    """Return a score with four digits, as everywhere in a sweep's output."""
    return "" if score is None else f"{score:.4f}"


def value_text(value: Any) -> str:
    """Return a hyperparameter's value, numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(estimate: Mapping[str, Any], sign: str = "") -> str:
    """Return a mean in per cent or points."""
    return f"{100 * estimate['mean']:{sign}.2f}"


def interval(estimate: Mapping[str, Any], scale: float = 100, form: str = ".2f") -> str:
    """Return an interval, or that there is none."""
    if estimate["low"] is None:
        return "none (one seed)"
    return f"{scale * estimate['low']:{form}} to {scale * estimate['high']:{form}}"


def amount(name: str, value: float | None) -> str:
    """Return a cost with its unit; see `comparison.COSTS`."""
    if value is None:
        return "not measured"
    if name == "parameters":
        return f"{value:,.0f}"
    if name.endswith("flops"):
        return scaled(value)
    if name == "training_seconds":
        return duration(value)
    if name == "model_bytes":
        return f"{value / 1e6:.2f} MB"
    return f"{1000 * value:.3g} ms"


def scaled(value: float) -> str:
    """Return a large number with three digits and a prefix."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"


def when(seconds: float) -> str:
    """Return a time as "2026-11-25 02:03"."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")


def command_of(recorded: str) -> str:
    """Return a session's command as it is typed."""
    return re.sub(r"^(\w+)\.py\b", r"python -m cnn_search.\1", recorded)
