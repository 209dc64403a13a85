"""Recorded curves: from the ledgers of sweeps over a finite space to one small table, and back.

python benchmarks/curves.py LEDGER [LEDGER ...] --to FILE.parquet   make the table
python benchmarks/curves.py FILE.parquet                            what is in it

The first ledger has every configuration once (the oracle grid); others may have some of them again,
with other seeds. A row is a training: its values, its seed, and by epoch validation accuracy,
validation cross-entropy and seconds. What is in it: how far the seed decides, and how well the best
so far foretells the best at the end, by epoch and schedule (Spearman's rank correlation).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cnn_search.ledger import Record, read_record

Key = tuple[Any, ...]
Curve = npt.NDArray[np.float64]
SCORES = {
    "accuracy": lambda row: row["accuracy"],
    # where accuracies are at their ceiling: the geometric mean of the right class's probability
    "likelihood": lambda row: np.exp(-np.asarray(row["loss"], float)),
}
Score = Literal["accuracy", "likelihood"]


class Curves:
    """The curves of a finite space.

    Attributes:
        names: Of the hyperparameters that vary.
        of: The score by epoch, by the values of `names`; None for one that has no effect.
        baseline: That of the tutorial's model.
        again: Of trainings with other seeds.
    """

    def __init__(self, path: Path, score: Score) -> None:
        table = pd.read_parquet(path)
        told = ("which", "seed", "accuracy", "loss", "seconds")
        self.names = [name for name in table.columns if name not in told]
        self.of: dict[Key, Curve] = {}
        self.again: dict[Key, list[Curve]] = {}
        self.baseline: Curve = np.zeros(0)
        for row in table.to_dict("records"):
            curve = np.asarray(SCORES[score](row), float)
            shown = (row[name] for name in self.names)  # pandas has NaN where there is none
            key = tuple(json.loads(text) if isinstance(text, str) else None for text in shown)
            if row["which"] == "baseline":
                if not len(self.baseline):
                    self.baseline = curve
            elif key in self.of:
                self.again.setdefault(key, []).append(curve)
            else:
                self.of[key] = curve

    @property
    def epochs(self) -> int:
        """How many a whole training has."""
        return len(self.baseline)

    @property
    def best(self) -> float:
        """The best score of all."""
        return max(float(np.max(curve)) for curve in self.of.values())

    def key(self, values: Mapping[str, Any]) -> Key:
        """Return the values that vary, as a key of `of`."""
        return tuple(values.get(name) for name in self.names)


def rows_of(record: Record, varying: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each trial; one that diverged has the score 0 throughout."""
    rows = []
    for trial in record.trials.values():
        if trial.status not in ("finished", "failed"):
            continue
        shown = {n: json.dumps(trial.values[n]) if n in trial.values else None for n in varying}
        full = record.definition["training"]["epochs"]

        def by_epoch(metric: str, lost: float, trial: Any = trial, full: int = full) -> Any:
            if trial.status == "failed":
                return [lost] * full
            return [round(trial.curve[epoch][metric], 5) for epoch in range(1, full + 1)]

        told = {"which": "baseline" if trial.baseline else "point", "seed": trial.seed, **shown}
        told |= {"accuracy": by_epoch("val_accuracy", 0.0), "loss": by_epoch("val_loss", 99.0)}
        told["seconds"] = [round(trial.seconds[epoch], 3) for epoch in sorted(trial.seconds)]
        rows.append(told)
    return rows


def describe(path: Path) -> None:
    """Print what is in a table."""
    for score in SCORES:
        curves = Curves(path, score)
        final = {key: float(np.max(curve)) for key, curve in curves.of.items()}
        ordered = np.sort([*final.values()])[::-1]
        shown = ", ".join(
            f"{ordered[int(len(ordered) * part)]:.4f}" for part in (0, 0.01, 0.1, 0.5)
        )
        print(f"{score}: best, 1 %, 10 %, 50 % of {len(ordered)}: {shown}")
        if curves.again:
            pairs = [(final[key], float(np.max(found[0]))) for key, found in curves.again.items()]
            first, second = np.array(pairs).T
            better = first >= np.median(first)
            spread = np.std((first - second)[better]) / np.sqrt(2)
            same = [
                stats.spearmanr(first[of], second[of]).statistic for of in (better | True, better)
            ]
            print(f"  {len(pairs)} with a second seed: rank correlation {same[0]:.2f}; the better")
            print(f"  half: spread of a seed {spread:.4f}, rank correlation {same[1]:.2f}")
        place = curves.names.index("schedule") if "schedule" in curves.names else None
        kinds = {key[place] if place is not None else "all" for key in final}
        for kind in sorted(kinds) + ["all"] * (len(kinds) > 1):
            keys = [k for k in final if kind == "all" or k[place or 0] == kind]
            ends = [final[key] for key in keys]
            line = []
            for epoch in (e for e in (1, 2, 3, 5, 7, 9, 14, 20) if e < curves.epochs):
                so_far = [float(np.max(curves.of[key][:epoch])) for key in keys]
                line.append(f"{epoch}: {stats.spearmanr(so_far, ends).statistic:.2f}")
            print(f"  rank correlation with the end, {kind}, after epoch {', '.join(line)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, metavar="FILE.parquet")
    options = parser.parse_args()
    if options.to is None:
        for path in options.files:
            describe(path)
        return
    records = [read_record(path) for path in options.files]
    space = records[0].definition["space"]
    varying = [name for name, value in space.items() if isinstance(value, list)]
    table = pd.DataFrame([row for record in records for row in rows_of(record, varying)])
    table.to_parquet(options.to, compression="zstd", index=False)
    print(f"{len(table):,} curves, {options.to.stat().st_size / 1e6:.2f} MB in {options.to}")


if __name__ == "__main__":
    main()
