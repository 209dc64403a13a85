"""Landscape: charts of what the hyperparameters did, most of them by Optuna's own visualization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn_search.ledger import Record, Trial
from cnn_search.report.charts import (
    BLACK,
    BLUE,
    MOST_POINTS,
    ORANGE,
    drawn_note,
    escape,
    points_trace,
    sample,
)
from cnn_search.report.formats import score_text, value_text
from cnn_search.report.importance import (
    Drawn,
    direction_of,
    freeze,
    full_trials,
    is_number,
    plain_value,
)
from cnn_search.report.parts import Figure, Plot, Table

MOST_LINES = 100  # of parallel coordinates
DECADES = {"dtick": 1, "minor": {"ticks": "outside", "dtick": "D1"}}  # of a logarithmic axis


def chosen_names(record: Record, importance: Mapping[str, Any], most: int) -> list[str]:
    """Return the hyperparameters to show: the most important; else those that the best changed."""
    if importance["rows"]:
        return [row["name"] for row in importance["rows"][:most]]
    trials = full_trials(record)
    varied = [
        name
        for name in dict.fromkeys(name for trial in trials for name in trial.values)
        if len({str(trial.values.get(name)) for trial in trials}) > 1
    ]
    ranking, baseline = record.ranking(), record.baseline
    if ranking and baseline:
        best = next((trial for trial in ranking if trial is not baseline), baseline)
        varied.sort(key=lambda name: best.values.get(name) == baseline.values.get(name))
    return varied[:most]


def parallel_chart(record: Record, names: Sequence[str]) -> Figure | None:
    """Draw trials as lines through their hyperparameters and score, by Optuna."""
    trials = full_trials(record)
    top = {trial.number for trial in record.ranking()[: MOST_LINES // 2]}
    shown = sample(trials, MOST_LINES // 2, lambda trial: trial.number in top)
    study, known = _study(record, shown)
    names = [name for name in names if escape(name) in known]
    if len(shown) < 2 or not names:
        return None
    from optuna.visualization import plot_parallel_coordinate

    objective = record.definition["objective"]
    found = plot_parallel_coordinate(
        study, params=[escape(name) for name in names], target_name=objective
    )
    plot = _plain(found)
    plot["data"][-1]["marker"]["showscale"] = False  # the score has an axis of its own
    plot["layout"]["margin"] = {"l": 60, "r": 80, "t": 24, "b": 44}
    rows = [
        [str(t.number), score_text(t.result["score"])]
        + [value_text(t.values[name]) if name in t.values else "" for name in names]
        for t in shown
    ]
    return Figure(
        "parallel",
        "Trials as lines",
        plot,
        Table(["#trial", f"#{objective}", *names], rows),
        drawn_note(len(shown), len(trials))
        + "The darker a line, the better its score; “None” is a hyperparameter that it has not.",
        height=460,
        width=110 * (len(names) + 1),
    )


def slice_charts(record: Record, names: Sequence[str]) -> list[Figure]:
    """Draw the score over each hyperparameter, by Optuna; the table has the mean by value."""
    trials = full_trials(record)
    shown = sample(trials, MOST_POINTS)
    study, known = _study(record, shown)
    names = [name for name in names if escape(name) in known]
    if len(shown) < 2 or not names:
        return []
    from optuna.visualization import plot_slice

    objective = record.definition["objective"]
    figures = []
    for place, name in enumerate(names):
        plot = _plain(plot_slice(study, params=[escape(name)], target_name=objective))
        for trace in plot["data"]:
            trace["x"] = [_unquoted(x) for x in trace["x"]]
            numbers = trace["marker"]["color"]
            trace["marker"] |= {
                "colorscale": "Cividis",
                "size": 7,
                "showscale": False,
                "opacity": 0.7,
            }
            trace |= {"text": list(numbers), "hovertemplate": "trial %{text}: %{y:.4f}"}
        axis = plot["layout"]["xaxis"]
        if axis.get("type") == "log":
            axis |= DECADES
        if "categoryarray" in axis:
            axis["categoryarray"] = [_unquoted(x) for x in axis["categoryarray"]]
        table = _by_value(trials, name, objective, record.header["direction"] == "max")
        figures.append(Figure(f"slice-{place}", name, plot, table, height=280, small=True))
    return figures


def _unquoted(value: Any) -> Any:
    """Return a category without the quotes of Python that Optuna puts around it."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _by_value(trials: Sequence[Trial], name: str, objective: str, maximise: bool) -> Table:
    having = [trial for trial in trials if name in trial.values]
    values: list[Any] = [plain_value(trial.values[name]) for trial in having]
    groups: dict[str, list[float]] = {}
    if is_number(values) and len(set(values)) > 12:
        cuts = np.quantile(values, [1 / 3, 2 / 3])
        ends = [min(values), *cuts, max(values)]
        labels = [f"{a:.3g} to {b:.3g}" for a, b in zip(ends, ends[1:], strict=False)]
        groups = {label: [] for label in labels}
        for trial, value in zip(having, values, strict=True):
            place = int(np.searchsorted(cuts, value, side="left"))
            groups[labels[place]].append(trial.result["score"])
    else:
        order = sorted(values) if is_number(values) else sorted(values, key=str)
        groups = {value_text(value): [] for value in order}
        for trial, value in zip(having, values, strict=True):
            groups[value_text(value)].append(trial.result["score"])
    if len(having) < len(trials):
        groups["(has it not)"] = [t.result["score"] for t in trials if name not in t.values]
    best = max if maximise else min
    return Table(
        [name, "#trials", f"#mean {objective}", "#best"],
        [
            [value, str(len(scores)), score_text(float(np.mean(scores))), score_text(best(scores))]
            for value, scores in groups.items()
            if scores
        ],
    )


def _study(record: Record, trials: Sequence[Trial]) -> tuple[Drawn, set[str]]:
    frozen = freeze(trials, lambda trial: [trial.result["score"]], escape)
    return Drawn(frozen, [direction_of(record.header["direction"] == "max")]), {
        name for trial in frozen for name in trial.params
    }


def front_chart(
    points: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    *,
    name: str,
    cost: str,
    amounts: Callable[[float], str],
    score: str,
    maximise: bool,
) -> Figure:
    """Draw score against a cost, and the points that none beats in both, by Optuna.

    Args:
        points: `name`, `cost`, `score`, `baseline` (whether it is the book's) of each.
        front: Those in front, see `analysis.fronts`.
        name: Of the element in the page.
        cost: Name and unit of the cost.
        amounts: Gives a cost as a text, for the table.
        score: Name of the score.
        maximise: Whether a higher score is better.
    """
    from optuna.trial import create_trial
    from optuna.visualization import plot_pareto_front

    before = {row["name"] for row in front}
    shown = sample(points, MOST_POINTS, lambda p: p["name"] in before or p["baseline"])
    frozen = [create_trial(values=[float(p["cost"]), float(p["score"])]) for p in shown]
    for number, trial in enumerate(frozen):
        trial.number = number
    study = Drawn(frozen, ["minimize", direction_of(maximise)])
    plot = _plain(plot_pareto_front(study, target_names=[cost, score]))
    titles = {(float(p["cost"]), float(p["score"])): escape(p["name"]) for p in shown}
    styles = [
        ("other trials", {"color": BLUE, "symbol": "circle-open", "size": 7}),
        ("none is better and no dearer", {"color": ORANGE, "symbol": "diamond", "size": 11}),
    ]
    for trace, (title, marker) in zip(plot["data"], styles, strict=True):
        trace |= {"name": title, "marker": marker, "showlegend": True}
        trace["text"] = [titles[pair] for pair in zip(trace["x"], trace["y"], strict=True)]
        trace["hovertemplate"] = "%{text}: %{y:.4f}, %{x}<extra></extra>"
    line = {"color": ORANGE, "dash": "dot", "shape": "hv"}
    plot["data"].append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [row["cost"] for row in front],
            "y": [row["score"] for row in front],
            "line": line,
            "showlegend": False,
            "hoverinfo": "skip",
        }
    )
    books = [p for p in shown if p["baseline"]]
    if books:
        plot["data"].append(
            points_trace(
                books,
                "baseline",
                "cost",
                {"symbol": "star", "color": BLACK, "size": 13},
            )
        )
    plot["layout"]["xaxis"] |= {"type": "log", **DECADES}
    if max(p["cost"] for p in shown) < 10 * min(p["cost"] for p in shown):
        plot["layout"]["xaxis"] = {"title": plot["layout"]["xaxis"]["title"], "rangemode": "tozero"}
    rows = [[row["name"], amounts(row["cost"]), score_text(row["score"])] for row in front]
    for row in books:
        if row["name"] not in before:
            rows.append([row["name"], amounts(row["cost"]), score_text(row["score"])])
    return Figure(
        f"front-{name}",
        f"{score} against {cost}",
        plot,
        Table(["", f"#{cost}", f"#{score}"], rows, note="Those in front, and the baseline."),
        drawn_note(len(shown), len(points)),
        small=True,
    )


def _plain(figure: Any) -> Plot:
    """Return a figure of plotly's as a dict, without title and template."""
    plot: Plot = figure.to_dict()
    plot["layout"].pop("template", None)
    plot["layout"].pop("title", None)
    return plot
