"""The dashboard of a sweep: what its ledger tells, drawn to fit a terminal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnn_search import plan
from cnn_search.definition import from_record
from cnn_search.ledger import Record, Trial, read_events
from cnn_search.progress import changes, duration, planned, time_left

BLOCKS = "▁▂▃▄▅▆▇█"
FEWEST_ROWS = 5  # of trials, however low the terminal
NARROW = 50  # characters


class Dashboard:
    """Reads a sweep's ledger as it grows; writes nothing.

    Args:
        folder: The sweep's.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.record, self._offset = folder / "ledger.jsonl", Record(), 0

    def look(self) -> None:
        """Read what was written since the last look."""
        for event, end in read_events(self.path, self._offset):
            self.record.apply(event)
            self._offset = end

    @property
    def ended(self) -> bool:
        """Whether what ran last has ended."""
        record = self.record
        return bool(record.scoring_end if record.job == "final" else record.end)

    def draw(self, width: int, height: int = 0) -> Group:
        """Draw how the sweep stands; with as many of its last trials as lines fit, 0: all."""
        record = self.record
        if not record.header:
            return Group(Text(f"{self.path.parent.name}: not begun yet"))
        final = record.job == "final" and bool(record.plans)
        trials = list((record.finals if final else record.trials).values())
        lines = [self._state(final), *self._search(), *self._running(trials)]
        rows = max(FEWEST_ROWS, height - len(lines) - 6) if height else len(trials)
        hidden = len(trials) - rows
        above = [Text(f"{hidden} older ones above", style="dim")] if hidden > 0 else []
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(*texts, *above, self._table(trials[-rows:], final, width))

    def _state(self, final: bool) -> str:
        record = self.record
        name, job = record.header["sweep"], "final scoring" if final else "search"
        if self.ended:
            return f"{name}: {job} ended: {record.scoring_end if final else record.end}"
        definition = from_record(record.definition)
        trials, epochs = plan.budget(definition)
        if final:
            trials = len(record.plans[-1]["finalists"]) * record.plans[-1]["seeds"]
            epochs = trials * record.plans[-1]["epochs"]
        done = len(planned(record) if final else record.counted())
        of = f" of {trials}" if done <= trials else ""  # it may have been extended since
        left = time_left(record, epochs, definition.minutes)
        ago = duration(max(0.0, time.time() - record.last_time))
        return f"{name}: {job}, trial {done}{of}; {left}; last written {ago} ago"

    def _search(self) -> list[str]:
        """Return the best so far by trial as a line of blocks, and how many reached each rung."""
        record, lines = self.record, []
        sign = 1 if record.header["direction"] == "max" else -1
        scores = [t.result["score"] for t in record.trials.values() if record.is_ranked(t)]
        best = list(itertools.accumulate(scores, max if sign > 0 else min))
        if best:
            objective = record.definition["objective"]
            shown = _line([sign * value for value in best])
            lines.append(f"best {objective}  {shown}  {best[0]:.4f} -> {best[-1]:.4f}")
        pruned = [len(t.curve) for t in record.trials.values() if t.status == "pruned"]
        if pruned:
            reached = [len(t.curve) for t in record.trials.values()]
            rungs = [
                f"epoch {rung}: {sum(n >= rung for n in reached)} came, {pruned.count(rung)} ended"
                for rung in sorted(set(pruned))
            ]
            lines.append(f"rungs  {'; '.join(rungs)}")
        return lines

    def _running(self, trials: Sequence[Trial]) -> list[str]:
        lines = []
        for trial in trials if not self.ended else []:
            if trial.status == "running":
                epoch = max(trial.curve, default=0)
                bar = "█" * round(20 * epoch / trial.epochs)
                value = self._value(trial)
                lines.append(f"trial {trial.number:<4} {bar:·<20} {epoch}/{trial.epochs}  {value}")
        return lines

    def _value(self, trial: Trial) -> str:
        objective = self.record.definition["objective"]
        score = trial.result.get("score")
        if score is None and trial.curve:
            score = trial.curve[max(trial.curve)][objective]
        return "" if score is None else f"{score:.4f}"

    def _table(self, trials: Sequence[Trial], final: bool, width: int) -> Table:
        record = self.record
        ranking = [] if final else record.ranking()
        best = ranking[0].number if ranking else None
        table = Table(box=None, pad_edge=False, expand=True)
        objective = record.definition["objective"]
        costs = ["parameters", "took"] if width >= 2 * NARROW else []
        columns = ["", "outcome", "epochs", objective, *costs]
        for name in columns:
            table.add_column(name, no_wrap=True, justify="left" if name == "outcome" else "right")
        if width >= NARROW:
            table.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1)
        for trial in trials:
            what = trial.finalist if final else changes(record, trial)
            if not final and (called := trial.baseline or trial.recipe):
                what = f"{called}: {what}"
            parameters = trial.result.get("parameters")
            failed = f": {trial.failure['reason']}" if trial.status == "failed" else ""
            row = [
                f"{'* ' if trial.number == best else ''}{trial.number}",
                f"{trial.status}{failed}",
                f"{len(trial.curve)}/{trial.epochs}",
                self._value(trial),
            ]
            if costs:
                row.append("" if parameters is None else f"{parameters:,}")
                row.append(duration(sum(trial.seconds.values())) if trial.seconds else "")
            row += [what] if width >= NARROW else []
            style = "bold" if trial.number == best else ""
            table.add_row(*map(Text, row), style=style)
        return table


def _line(values: Sequence[float], width: int = 40) -> str:
    """Return values, the higher the better, as blocks; at most `width`, the last of each part."""
    step = -(-len(values) // width)
    kept = [values[min(i + step, len(values)) - 1] for i in range(0, len(values), step)]
    low, high = min(kept), max(kept)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(BLOCKS[round((value - low) * scale)] for value in kept)
