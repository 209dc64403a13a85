"""python -m cnn_search.doctor [NAME]: what is wrong with ledgers, MLflow, files, and its cure."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cnn_search import commands, ledger
from cnn_search.errors import LedgerError


@click.command()
@click.argument("name", required=False)
@click.option("--fix", is_flag=True, help="Put right what can be, and say what was done.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@commands.mlruns_option()
def main(name: str | None, fix: bool, as_json: bool, mlruns: Path) -> int:
    """Say where a sweep's ledger, MLflow and files disagree; with --fix, reconcile them.

    NAME is a sweep's, whose every run is looked at; without it, all are. The ledger is the truth:
    it is delivered anew where MLflow lacks something. Sweeps that run are left alone, and so are
    runs that were deleted in MLflow. Ends with 0 if nothing is wrong, or all of it was fixed; else
    with 1. A note tells what cannot be put right any more, and is not counted.
    """
    if not mlruns.is_dir():
        raise LedgerError(
            f"doctor: expected a folder of sweeps; there is no {mlruns}. Run `python -m "
            "cnn_search.sweep digits` first, or pass --mlruns."
        )
    if name is not None and ledger.find_sweep(mlruns, name) is None:
        raise LedgerError(
            f"doctor: expected a sweep that ran; there is none called {name!r} in {mlruns}. "
            "Correct the name, leave it out to look at all, or pass --mlruns."
        )
    from cnn_search import backend, findings, reconciliation

    backend.prepare(1)  # a champion that is registered anew needs Keras
    rows = []
    for finding in reconciliation.examine(mlruns, name, fixing=fix):
        fixed, said = findings.settle(finding) if fix else (False, finding.remedy)
        row = {"where": finding.where, "what": finding.what, "remedy": finding.remedy}
        row["state"] = "note" if finding.note else "fixed" if fixed else "found"
        rows.append(row if said == finding.remedy else {**row, "result": said})
        if not as_json:
            lead = "fixed: " if fixed else "--fix: " if finding.fix and not fix else ""
            line = f"{finding.where}: {finding.what}" + (f". {lead}{said}" if said else "")
            click.echo(f"note: {line}" if finding.note else line)
    left, done = (sum(row["state"] == state for row in rows) for state in ("found", "fixed"))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        looked = findings.count(reconciliation.sweep_folders(mlruns, name), "sweep")
        told = f"{left} finding{'s' * (left != 1)}"
        click.echo(f"{looked} looked at: {told}" + (f", {done} fixed." if fix else "."))
    return 1 if left else 0


if __name__ == "__main__":
    commands.start(main, "doctor")
