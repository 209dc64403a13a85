"""Charts: the figures of the report as plotly reads them, each with a table of the same numbers.

Colours are of Okabe and Ito's palette, and never the only sign: dashes and markers differ too. A
text from outside is escaped, since plotly takes texts for markup.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn_search.report.formats import score_text
from cnn_search.report.parts import Figure, Table

BLACK, BLUE, ORANGE, GREEN, GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#8a8a8a"
MOST_POINTS = 500  # that are drawn in a figure; plotly's SVG lags behind the hand with more
MOST_CLASSES = 40  # of a confusion matrix that is drawn


def escape(text: str) -> str:
    """Return a text that plotly shows as it is."""
    return html.escape(text, quote=False)


def sample(rows: Sequence[Any], most: int, keep: Callable[[Any], bool] = lambda row: False) -> Any:
    """Return at most about `most` rows, evenly spread, and all that are to be kept."""
    if len(rows) <= most:
        return list(rows)
    spread = {int(place) for place in np.linspace(0, len(rows) - 1, most)}
    return [row for place, row in enumerate(rows) if place in spread or keep(row)]


def drawn_note(drawn: int, of: int, what: str = "trials") -> str:
    """Return what to say where not all was drawn."""
    return "" if drawn == of else f"{drawn:,} of {of:,} {what} are drawn. "


def history_chart(history: Sequence[Mapping[str, Any]], objective: str) -> Figure:
    """Draw every trial's score and the best so far."""
    scored = [row for row in history if row["score"] is not None]
    improved, best = set(), None
    for row in history:
        if row["best"] != best:
            best = row["best"]
            improved.add(row["trial"])
    shown = sample(scored, MOST_POINTS, lambda row: row["trial"] in improved)
    full = [row for row in shown if row["full"]]
    short = [row for row in shown if not row["full"]]
    cut = sample([row for row in history if row["status"] == "pruned"], MOST_POINTS)
    lost = sample([row for row in history if row["status"] == "failed"], MOST_POINTS)
    worst = max if objective == "val_loss" else min
    floor = worst([row["score"] for row in scored] + [row["last"] for row in cut], default=0.0)
    steps = [row for row in history if row["trial"] in improved]
    steps += [history[-1]] if history[-1]["best"] is not None else []
    data = [
        points_trace(full, "a trial", "trial", {"symbol": "circle", "color": BLUE, "size": 6}),
        points_trace(
            short, "of fewer epochs", "trial", {"symbol": "triangle-up-open", "color": GREY}
        ),
        points_trace(
            [{**row, "score": row["last"]} for row in cut],
            "pruned",
            "trial",
            {"symbol": "triangle-down-open", "color": GREY, "size": 7},
        ),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [row["trial"] for row in steps],
            "y": [row["best"] for row in steps],
            "line": {"shape": "hv", "color": ORANGE, "width": 3},
        },
        points_trace(
            [{**row, "score": floor} for row in lost],
            "failed (no score)",
            "trial",
            {"symbol": "x-thin", "color": BLACK, "size": 8, "line": {"width": 2}},
        ),
    ]
    first = history[0]
    if first["trial"] == 0 and first["score"] is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "baseline",
                "x": [0, history[-1]["trial"]],
                "y": [first["score"]] * 2,
                "line": {"color": BLACK, "dash": "dash", "width": 1.5},
            }
        )
    table = Table(
        ["trial", "status", f"#{objective}", "#best so far", "#epochs", "#parameters", "#seconds"]
        + ["what was changed"],
        [
            [
                row["name"],
                row["status"],
                score_text(row["last"] if row["score"] is None else row["score"]),
                score_text(row["best"]),
                str(row["epochs"]),
                "" if row["parameters"] is None else f"{row['parameters']:,}",
                f"{row['seconds']:.0f}",
                row["changed"],
            ]
            for row in history
        ],
    )
    note = drawn_note(len(shown), len(scored))
    note += "Validation scores of one seed each; the best of several flatters."
    plot = {
        "data": [trace for trace in data if trace["x"]],
        "layout": {"xaxis": {"title": {"text": "trial"}}, "yaxis": {"title": {"text": objective}}},
    }
    return Figure("history", "Every trial, and the best so far", plot, table, note)


def points_trace(
    rows: Sequence[Mapping[str, Any]], name: str, x: str, marker: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trace of points: `score` over the field `x`, named by `name` where one points."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [row[x] for row in rows],
        "y": [row["score"] for row in rows],
        "text": [escape(row["name"]) for row in rows],
        "hovertemplate": "%{text}: %{y:.4f}<extra></extra>",
        "marker": dict(marker),
    }


def curve_charts(curves: Mapping[str, Any]) -> list[Figure]:
    """Draw the mean curve of the best and of the baseline, every seed behind it."""
    styles = {"baseline": (ORANGE, "dash", "square"), "best": (BLUE, "solid", "circle")}
    figures = []
    for metric in curves["metrics"]:
        data: list[dict[str, Any]] = []
        columns, means = ["#epoch"], []
        for line in curves["lines"]:
            colour, dash, symbol = styles[line["role"]]
            seeds = [seed for seed in line["values"][metric] if seed and None not in seed]
            if not seeds:
                continue
            length = min(len(seed) for seed in seeds)
            whole = np.array([seed[:length] for seed in seeds])
            mean = whole.mean(axis=0)
            epochs = list(range(1, length + 1))
            if len(seeds) > 1:
                data += [
                    {"type": "scatter", "mode": "lines", "x": epochs, "y": seed.tolist()}
                    | {"line": {"color": colour, "width": 1, "dash": dash}, "opacity": 0.35}
                    | {"showlegend": False, "hoverinfo": "skip"}
                    for seed in whole
                ]
            n = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{escape(line['name'])}, {n}",
                    "x": epochs,
                    "y": mean.tolist(),
                    "line": {"color": colour, "width": 3, "dash": dash},
                    "marker": {"symbol": symbol, "size": 6},
                }
            )
            columns += [f"#{line['name']}"] + (["#lowest", "#highest"] if len(seeds) > 1 else [])
            means.append((whole, mean))
        if not means:
            continue
        rows = []
        for epoch in range(max(len(mean) for _, mean in means)):
            row = [str(epoch + 1)]
            for whole, mean in means:
                there = epoch < len(mean)
                row.append(score_text(mean[epoch]) if there else "")
                if len(whole) > 1:
                    row.append(score_text(whole[:, epoch].min()) if there else "")
                    row.append(score_text(whole[:, epoch].max()) if there else "")
            rows.append(row)
        plot = {
            "data": data,
            "layout": {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": metric}}},
        }
        title = f"{metric} by epoch"
        figures.append(Figure(f"curves-{metric}", title, plot, Table(columns, rows), small=True))
    return figures


def confusion_chart(test: Mapping[str, Any]) -> Figure | None:
    """Draw the confusion matrix, a row a true class, in per cent of its images."""
    names = test["class_names"]
    if len(names) > MOST_CLASSES:
        return None
    counts = np.array(test["confusion"], float)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, totals, where=totals > 0, out=np.zeros_like(counts))
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [escape(_short(name)) for name in names],
        "showgrid": False,
    }
    texts = [[f"{v:.1f}" if v >= 0.05 else "" for v in row] for row in share]
    data = [
        {
            "type": "heatmap",
            "z": np.round(share, 2).tolist(),
            "text": texts if len(names) <= 20 else None,
            "texttemplate": "%{text}" if len(names) <= 20 else None,
            "colorscale": [[0, "#ffffff"], [0.02, "#dbe9f4"], [0.1, "#6baed6"], [1, "#08306b"]],
            "zmin": 0,
            "zmax": 100,
            "hovertemplate": "true %{y}, predicted %{x}: %{z:.1f} %<extra></extra>",
            "colorbar": {"title": {"text": "%"}, "thickness": 12},
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "predicted"}, **ticks},
        "yaxis": {"title": {"text": "true"}, **ticks, "autorange": "reversed"},
    }
    rows = [
        [name, *(f"{v:.1f}" if v else "0" for v in row)]
        for name, row in zip(names, share, strict=True)
    ]
    return Figure(
        "confusion",
        "Confusion matrix, % of each true class",
        {"data": data, "layout": layout},
        Table(["true \\ predicted", *(f"#{name}" for name in names)], rows),
        height=max(380, 140 + 28 * len(names)),
        width=90 + 44 * len(names),
    )


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def reliability_chart(test: Mapping[str, Any]) -> Figure:
    """Draw how often predictions are right against how sure they are."""
    bins = [row for row in test["bins"] if row["images"]]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as sure as right",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": BLACK, "dash": "dash"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "the winner",
            "x": [row["confidence"] for row in bins],
            "y": [row["accuracy"] for row in bins],
            "text": [f"{row['images']:,} predictions" for row in bins],
            "hovertemplate": "sure %{x:.3f}, right %{y:.3f}, %{text}<extra></extra>",
            "marker": {"color": BLUE, "size": 8},
            "line": {"color": BLUE},
        },
    ]
    layout = {
        "xaxis": {"title": {"text": "probability that it gives (mean of the bin)"}},
        "yaxis": {"title": {"text": "share that is right"}},
    }
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = [0, 1.02]  # type: ignore[assignment]
    table = Table(
        ["probability", "#predictions", "#mean probability", "#share right"],
        [
            [
                f"{row['low']:.2f} to {row['high']:.2f}",
                f"{row['images']:,}",
                f"{row['confidence']:.4f}",
                f"{row['accuracy']:.4f}",
            ]
            for row in bins
        ],
    )
    return Figure("reliability", "Reliability", {"data": data, "layout": layout}, table, small=True)
