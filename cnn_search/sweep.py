"""python -m cnn_search.sweep NAME: train the book's model, search for a better one, register it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnn_search import commands, definition, plan


def _names(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return what a shell may offer for NAME: the shipped sweeps, else files."""
    names = [name for name in definition.shipped() if name.startswith(typed)]
    return [CompletionItem(name) for name in names] or [CompletionItem(typed, type="file")]


@click.command()
@click.argument("name", required=False, shell_complete=_names)
@click.option("--trials", type=click.IntRange(min=1), help="How many trials in all.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="End after the epoch that runs then: of the search, all runs of it counted; up to half is "
    "kept for the final scoring, which goes on, with as much again, if it was not enough.",
)
@click.option(
    "--epochs-total", type=click.IntRange(min=1), help="End with so many, all trials together."
)
@click.option(
    "--disk-quota",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MEGABYTES",
    help="End the search when its folder is larger.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of a full trial.")
@click.option("--oracle", help="auto, random, grid, bayesian, hyperband, tpe or gp.")
@click.option("--pruner", help="auto, none, asha, median or percentile.")
@click.option(
    "--space",
    metavar="FILE.py:NAME",
    help="What may vary: a space, a keras_tuner.HyperModel or a function build(hp) of your own.",
)
@click.option("--data-dir", help="Folder with the data set's archives.")
@click.option("--train-limit", type=click.IntRange(min=1), help="Use so many training images.")
@click.option("--seed", type=click.IntRange(min=1), help="Seed of the sweep.")
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="NAME=VALUE ...",
    help="A configuration of your own as the next trial: values on top of the baseline's, with "
    "spaces between. May be repeated.",
)
@click.option(
    "--warm-start",
    default="",
    metavar="SWEEP|best",
    help="Begin with what an earlier sweep found, or all that can be compared.",
)
@click.option("--set", "changes", multiple=True, metavar="TABLE.KEY=VALUE", help="Change the TOML.")
@commands.engine_options()
@click.option("--no-final", is_flag=True, help="End with the search; `score NAME` does the rest.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--probe", is_flag=True, help="With --dry-run: measure what it would take.")
@click.option("--new", is_flag=True, help="Start a new sweep, whatever there is.")
@click.option("--list", "list_", is_flag=True, help="Show the sweeps that come with the package.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@commands.mlruns_option()
def main(
    name: str | None,
    tries: tuple[str, ...],
    changes: tuple[str, ...],
    warm_start: str,
    no_final: bool,
    dry_run: bool,
    probe: bool,
    new: bool,
    list_: bool,
    as_json: bool,
    mlruns: Path,
    **options: Any,
) -> int:
    """Search for a better network than the tutorial's.

    NAME is a sweep that comes with the package (--list), the path of a TOML file, or the path of
    your own images: a folder with one sub-folder a class, an .npz or an .h5.

    The same command again goes on with the newest sweep of that name, wherever it was cut short.

    \b
    Examples:
        python -m cnn_search.sweep digits
        python -m cnn_search.sweep cifar10 --data-dir ~/data --trials 10 --minutes 60
    """
    if list_:
        return _list(as_json)
    if name is None:
        raise click.UsageError("Missing argument NAME; --list shows the sweeps.")
    if probe and not dry_run:
        raise click.UsageError("--probe: expected together with --dry-run.")
    given = _changes(options, changes)
    sweep = definition.read(name, given)
    if sweep.engine.workers is None and not sweep.engine.scheduler:
        sweep = definition.read(name, given | {"engine.workers": commands.WORKERS})
    table = None if no_final else sweep.final
    if sweep.oracle.kind == "hyperband" and "trials" in given:
        raise click.UsageError(
            "--trials: expected to be left out with hyperband, whose epochs give its trials: "
            f"{plan.in_all(sweep)}. Set --epochs, or --set oracle.iterations=N, or --minutes."
        )
    if dry_run and as_json:
        click.echo(json.dumps(sweep.as_json(), indent=2))
        return 0
    if dry_run:
        click.echo("\n".join(plan.describe(sweep)))
        if not probe:
            click.echo(
                "how long, and whether the space has what is narrowed and fits the images: "
                "--dry-run --probe"
            )
            return 0
    pairs = [dict(commands.parse_pair(p, "--try") for p in text.split()) for text in tries]

    from rich.console import Console

    from cnn_search import backend, datasets, progress

    backend.prepare(sweep.engine.threads_here())
    reporter = progress.Reporter(Console(stderr=True), *plan.budget(sweep), sweep.minutes)
    dataset = datasets.load(
        sweep.data,
        data_dir=sweep.data_dir,
        train_limit=sweep.train_limit,
        image_size=sweep.image_size,
    )
    reporter.say(progress.describe_data(dataset))
    if sweep.name not in (name, Path(name).stem):  # what commands ask for, made of a path
        reporter.say(f"this sweep, and its model, are called {sweep.name}")
    if not dry_run:
        reporter.say(plan.who(sweep))
    backend.load()
    from cnn_search import answer, final, search
    from cnn_search.report import page

    if dry_run:
        few = search.check(sweep, dataset, pairs)
        click.echo("\n".join([*plan.measured(sweep, dataset), *([few] if few else [])]))
        return 0
    told: dict[str, Any] = {"on_event": reporter, "say": reporter.say}
    try:
        reserve = final.reserve(table, sweep.minutes)
        begin: dict[str, Any] = {"tries": pairs, "new": new, "warm_start": warm_start}
        outcome = search.run(sweep, dataset, mlruns, **begin, reserve=reserve, **told)
        outcome = final.conclude(outcome, sweep, table, dataset, mlruns, **told)
    finally:
        reporter.close()
    summary = progress.summarise(outcome.record)
    found = answer.answer(outcome.record)
    written = page.leave(outcome, sweep.name, mlruns, reporter.say)
    if as_json:
        summary["answer"] = found
        summary["report"] = written
        summary["ledger"] = str(outcome.folder / "ledger.jsonl")
        summary |= {"mlflow": outcome.mlflow, "undelivered": outcome.undelivered}
        click.echo(json.dumps({**summary, "already": outcome.already}, indent=2))
    else:
        out = Console(width=None if Console().is_terminal else 120)
        progress.show_summary(out, summary)
        progress.show_answer(out, found)
        for line in _what_next(sweep, outcome, written):
            click.echo(line)
    if outcome.ending == "interrupted":
        return commands.INTERRUPTED
    if outcome.ending == "disk":
        return 1
    return 0 if summary["best"] else 1


def _list(as_json: bool) -> int:
    files = definition.shipped()
    if as_json:
        click.echo(json.dumps({name: definition.purpose(file) for name, file in files.items()}))
    else:
        for name, file in files.items():
            click.echo(f"{name:15} {definition.purpose(file)}")
    return 0


def _changes(options: dict[str, Any], changes: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of the command line as changes of the definition."""
    given = {commands.KEYS.get(k, k): v for k, v in options.items() if v is not None}
    return given | dict(commands.parse_pair(text, "--set") for text in changes)


def _what_next(sweep: Any, outcome: Any, written: str) -> list[str]:
    """Return the lines that say how it ended, and the next commands."""
    from cnn_search import progress

    record, lines = outcome.record, [""]
    typed = [argument for argument in sys.argv[1:] if argument != "--new"]
    mlruns = outcome.folder.parent.parent
    where = "" if mlruns == Path("mlruns") else f" --mlruns {shlex.quote(str(mlruns))}"
    again = f"python -m cnn_search.sweep {shlex.join(typed)}"
    if outcome.ending == "interrupted":
        lines.append(f"Interrupted; nothing is lost. The same command goes on: {again}")
    elif record.end == "minutes":
        lines.append("The minutes are used up. To go on: the same with a larger --minutes.")
    elif record.end == "epochs":
        lines.append("The epochs are used up. To go on: the same with a larger --epochs-total.")
    elif record.end == "quota":
        lines.append("The sweep's folder is full. To go on: the same with a larger --disk-quota.")
    elif "disk" in (outcome.ending, record.end):
        lines.append(f"The disk is full; nothing is lost. Make space, then: {again}")
    elif record.end == "flat":
        patience = sweep.stop.patience
        lines.append(f"No better one in {patience} trials. {progress.describe_gain(record)}")
        lines.append("To go on: the same with --set stop.patience=N, larger, or 0 for never.")
    elif record.end == "exhausted":
        lines.append("The oracle has nothing left to try in this space.")
    elif record.end == "failed":
        lines.append("Every trial failed; the last reason stands above. Traceback: in the ledger,")
        lines.append(f"{outcome.folder / 'ledger.jsonl'}")
    elif outcome.already and sweep.oracle.kind == "hyperband":
        lines.append("This sweep was finished, as Hyperband's brackets are. Another one: --new.")
    elif outcome.already:
        lines.append("This sweep was finished. To extend it: the same with a larger --trials.")
        lines.append("Another one, from the start: the same with --new.")
    if record.champion is not None and outcome.ending != "interrupted":
        what = record.scored.get("winner") or f"trial {record.champion}"
        lines.append(f"Registered: {what}, as a version of models:/{sweep.name}")
        pull = f"python -m cnn_search.registry pull {sweep.name}{where}"
        lines.append(f"  champion:   {pull}  # if it became challenger: --alias challenger")
    if outcome.undelivered:
        lines.append(f"MLflow does not have everything: {outcome.undelivered}")
        lines.append(f"The ledger has; the same command delivers the rest: {again}")
    if written:
        lines.append(f"  the report: {written}")
    local = outcome.mlflow.startswith("sqlite:")
    pages = f"python -m cnn_search.ui {sweep.name}{where}" if local else outcome.mlflow
    lines.append(f"  all trials: {pages}")
    lines.append(f"  the ledger: {outcome.folder / 'ledger.jsonl'}")
    return lines


if __name__ == "__main__":
    commands.start(main, "sweep")
