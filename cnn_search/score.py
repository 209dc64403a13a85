"""python -m cnn_search.score NAME: train the best and the book's model anew, score them on test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cnn_search import commands
from cnn_search.definition import FinalTable, from_record, with_engine
from cnn_search.errors import LedgerError
from cnn_search.surroundings import usable_cores


@click.command()
@click.argument("name")
@click.option("--top", type=click.IntRange(min=1), help="How many of the best configurations.")
@click.option("--seeds", type=click.IntRange(min=2), help="How often each is trained.")
@click.option("--baselines", help="Names of baselines, with commas between; or all.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="End after the epoch that runs then; the same command goes on.",
)
@click.option(
    "--ablate",
    is_flag=True,
    help="Then find out which change brought how much: up to twice as many configurations as there "
    "are changes, each with all seeds.",
)
@click.option("--data-dir", help="Folder with the data set's archives, if it is another one now.")
@commands.engine_options()
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@commands.mlruns_option()
def main(
    name: str,
    top: int | None,
    seeds: int | None,
    baselines: str | None,
    minutes: float | None,
    ablate: bool,
    data_dir: str | None,
    as_json: bool,
    mlruns: Path,
    **engine: Any,
) -> int:
    """Give the answer of a sweep: the best configurations against the book's, on the test part.

    NAME is a sweep's; its newest run is scored. The best configurations by validation and the
    baselines are trained with fresh seeds, then each model is scored once on the test part. A
    scoring that was cut short goes on; one that is on record is printed again.
    """
    from cnn_search import answer, backend, ledger

    folder = ledger.find_sweep(mlruns, name)
    if folder is None:
        raise LedgerError(
            f"score: expected a sweep that ran; there is none called {name!r} in {mlruns}. Run "
            f"`python -m cnn_search.sweep {name}` first, or pass --mlruns."
        )
    record = ledger.read_record(folder / "ledger.jsonl")
    if not record.header:
        raise LedgerError(
            f"score: expected a sweep that began; {folder / 'ledger.jsonl'} is empty. Run "
            f"`python -m cnn_search.sweep {name}` first."
        )
    definition = from_record(record.definition)
    given: dict[str, Any] = {"top": top, "seeds": seeds}
    if baselines is not None:
        given["baselines"] = [part.strip() for part in baselines.split(",")]
    table = definition.final or FinalTable()
    if record.plans:
        table = final_table(record.plans[-1])
    table = table.model_copy(update={k: v for k, v in given.items() if v is not None})
    chosen = {key: value for key, value in engine.items() if value is not None}
    where = with_engine(definition, chosen)
    backend.prepare(where.threads or record.threads or usable_cores())
    from rich.console import Console

    from cnn_search import datasets, progress

    reporter = progress.Reporter(Console(stderr=True), 0, 0)
    dataset = datasets.load(
        definition.data,
        data_dir=data_dir or definition.data_dir,
        train_limit=definition.train_limit,
        image_size=definition.image_size,
    )
    reporter.say(progress.describe_data(dataset))
    backend.load()
    from cnn_search import ablation, final
    from cnn_search.report import page

    told: dict[str, Any] = {
        "minutes": minutes,
        "engine": where,
        "on_event": reporter,
        "say": reporter.say,
    }
    try:
        outcome = final.run(folder, dataset, mlruns, table, **told)
        if ablate and outcome.record.scored:
            outcome = ablation.run(folder, dataset, mlruns, seeds=seeds, **told)
    finally:
        reporter.close()
    found = answer.answer(outcome.record)
    target = page.write(folder / "ledger.jsonl", folder / "report.html")
    if why := page.publish(target, definition.name, folder.name, mlruns):
        reporter.say(f"note: {why}")
    if as_json:
        click.echo(json.dumps({**found, "undelivered": outcome.undelivered}, indent=2))
    else:
        progress.show_answer(Console(width=None if Console().is_terminal else 120), found)
        click.echo(f"The report: {target}")
    if outcome.ending == "interrupted":
        return commands.INTERRUPTED
    return 0 if outcome.record.scored else 1


def final_table(plan: Mapping[str, Any]) -> FinalTable:
    """Return what a plan on record asks for, so that the same command goes on with it."""
    books = [f["name"] for f in plan["finalists"] if f["baseline"]]
    top = len(plan["finalists"]) - len(books)
    return FinalTable(top=max(1, top), seeds=plan["seeds"], baselines=books)


if __name__ == "__main__":
    commands.start(main, "score")
