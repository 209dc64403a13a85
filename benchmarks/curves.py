"""Recorded curves: from the ledgers of sweeps over a finite space to one small table, and back.

python benchmarks/curves.py LEDGER [LEDGER ...] --to FILE.parquet

The first ledger has every configuration once (the oracle grid); others may have some of them again,
with other seeds. A row is a training: its values, seed, validation accuracy and seconds by epoch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnn_search.ledger import read_record

Key = tuple[Any, ...]


class Curves:
    """The curves of a finite space.

    Attributes:
        names: Of the hyperparameters that vary.
        accuracy: Validation accuracy by epoch, by the values of `names`; None for one that has no
            effect.
        baseline: That of the tutorial's model.
        again: Of trainings with other seeds.
    """

    def __init__(self, path: Path) -> None:
        table = pd.read_parquet(path)
        self.names = [n for n in table.columns if n not in ("which", "seed", "accuracy", "seconds")]
        self.accuracy: dict[Key, npt.NDArray[np.float64]] = {}
        self.again: dict[Key, list[npt.NDArray[np.float64]]] = {}
        self.baseline: npt.NDArray[np.float64] = np.zeros(0)
        for row in table.to_dict("records"):
            curve = np.asarray(row["accuracy"], float)
            shown = (row[name] for name in self.names)  # pandas has NaN where there is none
            key = tuple(json.loads(text) if isinstance(text, str) else None for text in shown)
            if row["which"] == "baseline":
                self.baseline = curve
            elif key in self.accuracy:
                self.again.setdefault(key, []).append(curve)
            else:
                self.accuracy[key] = curve

    @property
    def epochs(self) -> int:
        """How many a whole training has."""
        return len(self.baseline)

    def key(self, values: Mapping[str, Any]) -> Key:
        """Return the values that vary, as a key of `accuracy`."""
        return tuple(values.get(name) for name in self.names)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return a row for each finished trial of a ledger."""
    record = read_record(path)
    varying = [
        name for name, value in record.definition["space"].items() if isinstance(value, list)
    ]
    rows = []
    for trial in record.trials.values():
        if trial.status != "finished":
            continue
        shown = {n: json.dumps(trial.values[n]) if n in trial.values else None for n in varying}
        epochs = sorted(trial.curve)
        curve = [round(trial.curve[epoch]["val_accuracy"], 5) for epoch in epochs]
        seconds = [round(trial.seconds[epoch], 3) for epoch in epochs]
        which = "baseline" if trial.baseline else "point"
        rows.append(
            {"which": which, "seed": trial.seed, **shown} | {"accuracy": curve, "seconds": seconds}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ledgers", nargs="+", type=Path, metavar="LEDGER")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    table = pd.DataFrame([row for path in options.ledgers for row in rows_of(path)])
    table.to_parquet(options.to, compression="zstd", index=False)
    print(f"{len(table):,} curves, {options.to.stat().st_size / 1e6:.2f} MB in {options.to}")


if __name__ == "__main__":
    main()
