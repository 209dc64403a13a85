"""Progress: what a sweep says while it runs, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cnn_search.datasets import Dataset
from cnn_search.ledger import ENDINGS, Event, Record, Trial
from cnn_search.statistics import gain_left

WRAPPED = 24  # characters at least of a column whose text may go on in the next line
PLAIN_SECONDS = 10  # at most one epoch's line in so many seconds, where there is no terminal


class Reporter:
    """Told each event of a sweep: bars on a terminal, plain lines elsewhere.

    Args:
        console: Where to; standard error, so that standard output has the answer alone.
        trials, epochs: How many there will be, in all; a final scoring's plan says its own.
        minutes: The sweep's limit, if it has one.
    """

    def __init__(
        self, console: Console, trials: int, epochs: int, minutes: float | None = None
    ) -> None:
        self.console, self.trials, self.epochs, self.minutes = console, trials, epochs, minutes
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[news]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[int, TaskID] = {}
        self._said = 0.0

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away."""
        if self._bars.live.is_started:
            self._bars.stop()

    def __call__(self, record: Record, event: Event) -> None:
        kind = event["kind"]
        if record.job == "final" and record.plans:  # also one that is on record and goes on
            plan = record.plans[-1]
            self.trials = len(plan["finalists"]) * plan["seeds"]
            self.epochs = self.trials * plan["epochs"]
        if kind == "start":
            self._on_start(record, record.trial_of(event))
        elif kind == "epoch":
            self._on_epoch(record, record.trial_of(event), event)
        elif kind in (*ENDINGS, "stopped") or (kind == "killed" and "reason" in event):
            trial = record.trial_of(event)
            if trial.number in self._tasks:
                self._bars.remove_task(self._tasks.pop(trial.number))
            self.say(f"{self._name(record, trial)}: {_ending(record, trial, event)}")
        elif kind == "stop":
            after = "epoch" if event["reason"] in ("minutes", "epochs", "quota") else "batch"
            name = self._name(record, record.trial_of(event))
            self.say(f"{name}: {event['reason']}, ends after the running {after} ...")

    def _name(self, record: Record, trial: Trial) -> str:
        if trial.source == "final":
            # an ablation's are beyond the plan
            of = f" ({trial.number + 1} of {self.trials})" if trial.number < self.trials else ""
            return f"final {trial.number}{of}: {trial.finalist}"
        place = 1 + sum(other.number < trial.number for other in record.counted())
        number = f"trial {trial.number} ({place} of {self.trials})"
        kinds = {"baseline": trial.baseline, "recipe": trial.recipe}
        return number + "".join(f" ({kind} {name})" for kind, name in kinds.items() if name)

    def _on_start(self, record: Record, trial: Trial) -> None:
        again = f", attempt {trial.attempt}" if trial.attempt > 1 else ""
        what = f"seed {trial.seed}" if trial.source == "final" else changes(record, trial, limit=8)
        name = self._name(record, trial)
        self.say(f"{name}{again}: {what}")
        if self.console.is_terminal:
            self._bars.start()
            self._tasks[trial.number] = self._bars.add_task(name, total=trial.epochs, news="")

    def _on_epoch(self, record: Record, trial: Trial, event: Event) -> None:
        objective = record.definition["objective"]
        news = f"{objective} {event['metrics'][objective]:.4f}"
        if trial.source != "final" and (ranking := record.ranking()):
            news += f"  best {ranking[0].result['score']:.4f}"
        news += f"  {time_left(record, self.epochs, self.minutes)}"
        if trial.number in self._tasks:
            self._bars.update(self._tasks[trial.number], completed=event["epoch"], news=news)
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self.say(f"{self._name(record, trial)}: epoch {event['epoch']}/{trial.epochs}  {news}")


def capital(text: str) -> str:
    """Return a text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def ratio_text(ratio: float) -> str:
    """Return a ratio with two digits, or all that it has before the point."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def planned(record: Record) -> list[Trial]:
    """Return the retrainings of the last plan: none of an earlier one, or of an ablation."""
    values = [finalist["values"] for finalist in record.plans[-1]["finalists"]]
    return [trial for trial in record.finals.values() if trial.values in values]


def time_left(record: Record, epochs: int, minutes: float | None) -> str:
    """Return what is left in words: as many epochs end early as so far, and take as long.

    Args:
        record: Of a sweep that runs.
        epochs: How many its search or final scoring has, in all.
        minutes: The limit of its search, if it has one.
    """
    trials = list(record.trials.values())
    if record.job == "final" and record.scored:
        return "ablation"  # how many trainings it takes shows when the changes are in order
    if record.job == "final" and record.plans:
        trials = planned(record)
    seconds = [s for trial in trials for s in trial.seconds.values()]
    if not seconds:
        return "no epoch yet"
    early = [t for t in trials if t.status in ("finished", "pruned", "failed")]
    begun = [0 if t.parent is None else record.trials[t.parent].epochs for t in early]
    saved = sum(t.epochs - start - len(t.curve) for t, start in zip(early, begun, strict=True))
    each = sum(seconds) / (len(seconds) + saved)
    left = max(0, epochs - len(seconds) - saved) * each
    if minutes and record.job == "search":
        left = min(left, minutes * 60 - record.seconds)
    return f"about {duration(max(0.0, left))} left"


def describe_data(dataset: Dataset) -> str:
    """Return what was loaded, and what a user should know of it, a line each."""
    height, width, channels = dataset.input_shape
    train, validation = len(dataset.train.labels), len(dataset.validation.labels)
    first = (
        f"{dataset.name}: {train:,} training and {validation:,} validation images of "
        f"{height}x{width}x{channels}, {dataset.classes} classes; {dataset.source}"
    )
    return "\n".join([first, *(f"note: {note}" for note in dataset.notes)])


def _ending(record: Record, trial: Trial, event: Event) -> str:
    if event["kind"] == "failed":
        return f"failed ({event['reason']}): {event['message']}"
    if event["kind"] == "refused":
        return f"refused: {event['message']}"
    if event["kind"] == "killed":
        return f"{event['reason']}: {event['message']}; it is tried again"
    if event["kind"] == "stopped":
        return f"stopped after epoch {max(trial.curve, default=0)}; it can go on"
    objective = record.definition["objective"]
    if event["kind"] == "pruned":
        value = trial.curve[event["epoch"]][objective]
        return f"pruned after epoch {event['epoch']}: {objective} {value:.4f}"
    text = f"{objective} {event['score']:.4f} at epoch {event['best_epoch']}"
    text += f"; {event['parameters']:,} parameters, {duration(sum(trial.seconds.values()))}"
    if event["blocks_dropped"]:
        text += f"; {event['blocks_dropped']} of its blocks did not fit the images: dropped"
    return text


def describe_gain(record: Record) -> str:
    """Return in a sentence what as many trials again would bring; empty if they were too few."""
    ranking = record.ranking()
    if len(ranking) < 4:
        return ""
    sign = 1 if record.header["direction"] == "max" else -1
    count = sum(trial.status in ("finished", "pruned") for trial in record.trials.values())
    gain = gain_left([sign * trial.result["score"] for trial in ranking], count, count)
    return (
        f"{count} more like these would better {record.definition['objective']} by about "
        f"{gain.mean:.4f} ({gain.low:.4f} to {gain.high:.4f})."
    )


def changes(record: Record, trial: Trial, limit: int = 0) -> str:
    """Return how a trial's values differ from trial 0's, as "filters_1 64, pooling_1 average"."""
    if trial.number == 0:
        return "the defaults" if trial.baseline == "defaults" else "the tutorial's model"
    base = record.trials[0].values
    changed = [f"{k} {_short(v)}" for k, v in trial.values.items() if base.get(k) != v]
    if limit and len(changed) > limit:
        changed = [*changed[:limit], f"and {len(changed) - limit} more"]
    return ", ".join(changed) or "the same values as trial 0"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Return seconds as "48 s", "12 min" or "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def summarise(record: Record) -> dict[str, Any]:
    """Return a sweep's state as plain data: the best trials beside the baseline, and counts."""
    rows = [_row(record, trial) for trial in record.ranking()]
    baseline = _row(record, record.baseline) if record.baseline else None
    statuses = [trial.status for trial in record.trials.values()]
    return {
        "sweep": record.header["sweep"],
        "ended": record.end,
        "objective": record.definition["objective"],
        "evidence": "validation",
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "epochs": sum(len(trial.curve) for trial in record.trials.values()),
        "seconds": round(record.seconds, 1),
        "champion": record.champion,
        "baseline": baseline,
        "best": rows[:5],
    }


def _row(record: Record, trial: Trial) -> dict[str, Any]:
    result: Mapping[str, Any] = trial.result
    return {
        "trial": trial.number,
        "baseline": trial.baseline,
        "score": result["score"],
        "best_epoch": result["best_epoch"],
        "parameters": result["parameters"],
        "flops": result["flops"],
        "seconds": round(sum(trial.seconds.values()), 1),
        "changed": changes(record, trial, limit=6),
    }


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the best five beside the baseline, if any finished."""
    if not summary["best"]:
        return
    baseline = summary["baseline"]
    objective = summary["objective"]
    table = Table(
        title=f"{summary['sweep']}: the best five beside the baseline", title_justify="left"
    )
    for column, justify in (("", "left"), (objective, "right"), ("against it", "right")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for column in ("parameters", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what was changed")
    rows = [baseline] if baseline else []
    rows += [row for row in summary["best"] if row["trial"] != 0]
    for row in rows:
        name = (
            f"{'baseline ' + row['baseline'] if row['baseline'] else 'trial ' + str(row['trial'])}"
        )
        table.add_row(
            name,
            f"{row['score']:.4f}",
            _difference(objective, row, baseline),
            f"{row['parameters']:,}",
            f"{row['seconds']:.0f}",
            row["changed"],
        )
    _print(console, table)
    trials = ", ".join(f"{count} {status}" for status, count in summary["trials"].items())
    console.print(
        f"{trials}; {summary['epochs']} epochs in {duration(summary['seconds'])}.", highlight=False
    )


def show_answer(console: Console, answer: Mapping[str, Any]) -> None:
    """Print the answer: in a sentence and, where the test part was scored, as a table."""
    console.print(f"\n{answer['sentence']}", highlight=False)
    if answer["state"] != "scored":
        return
    console.print()
    table = Table(
        title="Trained anew, scored on the test part (accuracy in %, the winner's gain in points)",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    columns = ("accuracy", "95 % interval", "gain", "95 % interval", "parameters")
    for column in (*columns, "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in answer["rows"]:
        difference = answer["differences"].get(row["name"])
        table.add_row(
            f"baseline {row['name']}" if row["baseline"] else row["name"],
            f"{100 * row['accuracy']['mean']:.2f}",
            _interval(row["accuracy"], ""),
            f"{100 * difference['mean']:+.2f}" if difference else "",
            _interval(difference, "+") if difference else "",
            f"{row['parameters']:,}",
            f"{row['training_seconds']:.0f}",
        )
    _print(console, table)
    if not answer["ablation"]:
        return
    steps = Table(title="One change at a time, by validation", title_justify="left")
    for column in ("", "alone on the book's model", "with all above", "step"):
        steps.add_column(column, justify="right" if column else "left")
    before = None
    for row in answer["ablation"]:
        alone, path = (
            "failed" if r is None else f"{r['mean']:.4f}" for r in (row["alone"], row["path"])
        )
        step = ""
        if before and row["path"]:
            step = f"{row['path']['mean'] - before['mean']:+.4f}"
        steps.add_row(row["change"] or "the book's model", alone, path, step)
        before = row["path"] or before
    console.print(steps)


def _print(console: Console, table: Table) -> None:
    """Print a table, without its last columns where the terminal is too narrow for them."""
    widths = [
        max(map(cell_len, map(str, (column.header, *column.cells)))) if column.no_wrap else WRAPPED
        for column in table.columns
    ]
    while len(widths) > 2 and sum(widths) + 3 * len(widths) + 1 > console.width:
        widths.pop()
        table.columns.pop()
    console.print(table)


def _interval(estimate: Mapping[str, Any], sign: str) -> str:
    if estimate["low"] is None:
        return "none"
    return f"{100 * estimate['low']:{sign}.2f} to {100 * estimate['high']:{sign}.2f}"


def _difference(objective: str, row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    if baseline is None or row is baseline:
        return ""
    difference = row["score"] - baseline["score"]
    if objective == "val_loss":
        return f"{difference:+.4f}"
    return f"{100 * difference:+.2f} points"
