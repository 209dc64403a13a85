"""Intervals: charts of estimates with their intervals: importance, claims, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnn_search.report.charts import BLACK, BLUE, GREY, ORANGE, drawn_note, escape
from cnn_search.report.parts import Figure, Table


def importance_chart(importance: Mapping[str, Any], most: int = 15) -> Figure:
    """Draw the share of each hyperparameter with its interval, and what chance gives."""
    rows = importance["rows"][:most]
    above = [row for row in rows if row["above"]]
    data = []
    for group, name, colour, symbol in (
        (above, "above chance", BLUE, "circle"),
        ([r for r in rows if not r["above"]], "not told from chance", GREY, "circle-open"),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [row["share"] for row in group],
                "y": [escape(row["name"]) for row in group],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [row["high"] - row["share"] for row in group],
                    "arrayminus": [row["share"] - row["low"] for row in group],
                },
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
            }
        )
    names = [escape(row["name"]) for row in reversed(rows)]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "what chance reaches",
            "x": [row["chance"] for row in rows],
            "y": [escape(row["name"]) for row in rows],
            "marker": {"color": BLACK, "symbol": "line-ns-open", "size": 14}
            | {"line": {"width": 2}},
            "hovertemplate": "%{y}: chance reaches %{x:.1%}<extra></extra>",
        }
    )
    plot = {
        "data": [trace for trace in data if trace["x"]],
        "layout": {
            "xaxis": {"title": {"text": "share of the importance"}, "tickformat": ".0%"}
            | {"rangemode": "tozero"},
            "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names},
        },
    }
    table = Table(
        ["hyperparameter", "#share", "#95 % interval", "#chance reaches", "above it"]
        + ["#trials that had it"],
        [
            [
                row["name"],
                f"{row['share']:.1%}",
                f"{row['low']:.1%} to {row['high']:.1%}",
                f"{row['chance']:.1%}",
                "yes" if row["above"] else "no",
                str(row["trials"]),
            ]
            for row in importance["rows"]
        ],
    )
    return Figure(
        "importance",
        "What had to do with being among the best",
        plot,
        table,
        drawn_note(len(rows), len(importance["rows"]), "hyperparameters"),
        height=120 + 24 * len(rows),
    )


def claims_chart(claims: Mapping[str, Any], unit: str, scale: float, table: Table) -> Figure | None:
    """Draw the difference of each claim that could be weighed, with its interval."""
    rows = [row for row in claims["rows"] if row["difference"] is not None][::-1]
    if not rows:
        return None
    unsure = [row for row in rows if row["verdict"] == "cannot tell"]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [scale * row["difference"] for row in group],
            "y": [row["topic"] for row in group],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [scale * (row["high"] - row["difference"]) for row in group],
                "arrayminus": [scale * (row["difference"] - row["low"]) for row in group],
            },
            "marker": {"color": colour, "symbol": symbol, "size": 10},
            "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
        }
        for group, name, colour, symbol in (
            ([row for row in rows if row not in unsure], "a difference", BLUE, "circle"),
            (unsure, "cannot tell", GREY, "circle-open"),
        )
        if group
    ]
    layout = {
        "xaxis": {
            "title": {"text": f"first group better by ({unit})"},
            "zeroline": True,
            "zerolinewidth": 2,
            "zerolinecolor": BLACK,
        },
        "yaxis": {"type": "category", "categoryorder": "array"}
        | {"categoryarray": [row["topic"] for row in rows]},
    }
    plot = {"data": data, "layout": layout}
    return Figure(
        "claims",
        "First group against second",
        plot,
        table,
        height=120 + 30 * len(rows),
    )


def seeds_chart(answer: Mapping[str, Any], table: Table) -> Figure:
    """Draw the test accuracy of every seed and each mean with its interval."""
    rows = answer["rows"][::-1]
    names = [escape(row["name"]) for row in rows]
    dots: dict[str, list[Any]] = {"x": [], "y": []}
    for row, name in zip(rows, names, strict=True):
        dots["x"] += [100 * seed["accuracy"] for seed in row["seeds"]]
        dots["y"] += [name] * len(row["seeds"])
    means = [100 * row["accuracy"]["mean"] for row in rows]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [_up_to(row["accuracy"], "high") for row in rows],
        "arrayminus": [_up_to(row["accuracy"], "low") for row in rows],
        "thickness": 2,
    }
    data = [
        {"type": "scatter", "mode": "markers", "name": "a seed", **dots}
        | {"marker": {"symbol": "line-ns-open", "size": 12, "color": BLUE, "line": {"width": 2}}},
        {"type": "scatter", "mode": "markers", "name": "mean and 95 % interval", "x": means}
        | {"y": names, "error_x": error}
        | {"marker": {"symbol": "diamond", "size": 10, "color": ORANGE}},
    ]
    layout = {
        "xaxis": {"title": {"text": "test accuracy (%)"}},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names},
    }
    return Figure(
        "seeds",
        "Every seed on the test part",
        {"data": data, "layout": layout},
        table,
        height=140 + 34 * len(rows),
    )


def _up_to(estimate: Mapping[str, Any], end: str) -> float:
    return 0.0 if estimate[end] is None else 100 * abs(estimate[end] - estimate["mean"])
