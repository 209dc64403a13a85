"""python -m cnn_search.replay RUN: train a trial of MLflow's again, and say if it is the same."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cnn_search import commands


@click.command()
@click.argument("name", metavar="RUN_ID | NAME")
@click.option("--trial", type=click.IntRange(min=0), help="A trial of the sweep NAME.")
@click.option("--final", type=click.IntRange(min=0), help="A retraining of its final scoring.")
@click.option("--data-dir", help="Folder with the data set's archives, if it is another one now.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the training [as then].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@commands.mlruns_option()
def main(
    name: str,
    trial: int | None,
    final: int | None,
    data_dir: str | None,
    threads: int | None,
    as_json: bool,
    mlruns: Path,
) -> int:
    """Train a trial again, from what MLflow has of it, and say whether it comes out the same.

    RUN_ID is the run of a trial, of any of its attempts, or of a retraining. NAME is a sweep's;
    its newest run is meant, or the very one with its date. Neither the sweep's folder nor its
    ledger is needed, and nothing is written. Ends with 0 if every metric of every epoch is equal
    to the last digit, or the score lies within the spread of other seeds; else with 1.

    \b
    Examples:
        python -m cnn_search.replay 0123456789abcdef0123456789abcdef
        python -m cnn_search.replay digits --trial 3
    """
    if trial is not None and final is not None:
        raise click.UsageError("expected --trial or --final; received both.")
    from cnn_search import backend, recorded, reproduction

    found = recorded.find(mlruns, name, trial, final)
    backend.prepare(threads or max(found.threads))

    def say(line: str) -> None:
        click.echo(line, err=True)

    say(f"{found.title}: {found.epochs} epochs of {found.definition.data}, seed {found.seed}")
    dataset = reproduction.load_images(found, data_dir)
    backend.load()
    changes = reproduction.differences(found)
    for change in changes:
        say(f"warning: {change}")
    replayed = reproduction.train_again(found, dataset, say)
    result = reproduction.judge(found, replayed, changes)
    click.echo(json.dumps(result, indent=2) if as_json else reproduction.describe(result))
    return 0 if result["reproduced"] else 1


if __name__ == "__main__":
    commands.start(main, "replay")
