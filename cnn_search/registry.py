"""python -m cnn_search.registry COMMAND: the models that sweeps registered, and their champions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cnn_search import commands


@click.group(no_args_is_help=False)
def main() -> None:
    """Look at the models that sweeps registered, take them along, and say who is champion."""


@main.command("list")
@commands.json_option()
@commands.mlruns_option()
def list_(as_json: bool, mlruns: Path) -> None:
    """Show every registered model that has a champion, and on what evidence."""
    from cnn_search import models, store

    found = models.list_models(store.open_store(mlruns, ""))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found:
        click.echo("No model is registered yet. Run `python -m cnn_search.sweep digits` first.")
    for model in found if not as_json else []:
        click.echo(
            f"{model['name']:15} version {model['version']}, {model['summary']}, "
            f"{model['parameters']:,} parameters, {model['finalist']} of {model['sweep']}"
        )


@main.command()
@click.argument("name")
@commands.alias_option()
@commands.json_option()
@commands.mlruns_option()
def show(name: str, alias: str, as_json: bool, mlruns: Path) -> None:
    """Show what is known of a champion: its evidence, classes, hyperparameters, and its URI."""
    from cnn_search import models, store

    opened = store.open_store(mlruns, name)
    model = models.show_model(opened, name, alias)
    if as_json:
        click.echo(json.dumps(model, indent=2))
        return
    click.echo(f"{model['name']} version {model['version']}, {alias}: {model['summary']}")
    click.echo(f"{model['finalist']} of {model['sweep']}, {model['parameters']:,} parameters")
    if model["promotion"]:
        click.echo(model["promotion"])
    click.echo(f"classes: {', '.join(model['class_names'])}")
    for key, value in model["hyperparameters"].items():
        click.echo(f"  {key:22} {value}")
    click.echo("In Python:")
    click.echo(f'  mlflow.set_tracking_uri("{opened.address}")')
    click.echo(f'  mlflow.keras.load_model("{model["uri"]}")')


@main.command()
@click.argument("name")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), default=Path("."), help="Folder [here]."
)
@commands.alias_option()
@commands.json_option()
@commands.mlruns_option()
def pull(name: str, folder: Path, alias: str, as_json: bool, mlruns: Path) -> None:
    """Write a champion's model, class names and configuration as plain files.

    NAME.keras opens with plain `keras.models.load_model`; it takes raw uint8 images and returns
    class probabilities.
    """
    from cnn_search import models, store

    _, files = models.pull_model(store.open_store(mlruns, name), name, folder, alias)
    if as_json:
        click.echo(json.dumps([str(path) for path in files], indent=2))
    for path in files if not as_json else []:
        click.echo(str(path))


@main.command()
@click.argument("name")
@commands.json_option()
@commands.mlruns_option()
def history(name: str, as_json: bool, mlruns: Path) -> None:
    """Show every move of a model's aliases: from, to, on what evidence, when, by which sweep."""
    from cnn_search import aliases, store

    present, moves = aliases.aliases_and_history(store.open_store(mlruns, name), name)
    if as_json:
        click.echo(json.dumps(moves, indent=2))
        return
    held = [f"{alias} is version {number}" for alias, number in sorted(present.items())]
    click.echo(f"{name}: {', '.join(held) or 'no version has an alias'}")
    for move in moves:
        click.echo(
            f"{move['at']}  {move['alias']:10} {move['from'] or '-'} -> {move['to']}  "
            f"({move['evidence']} evidence)  by {move['by']}"
        )
        click.echo(f"    {move['why']}")
    if not moves:
        click.echo("No move is on record: an older version of cnn_search kept none.")


@main.command()
@click.argument("name")
@commands.json_option()
@commands.mlruns_option()
def rollback(name: str, as_json: bool, mlruns: Path) -> None:
    """Make the previous champion champion again, and record it."""
    from cnn_search import aliases, store

    _print(name, aliases.rollback(store.open_store(mlruns, name), name), as_json)


@main.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Which version [the challenger].")
@click.option("--force", is_flag=True, help="Without the evidence for it; that is recorded.")
@commands.json_option()
@commands.mlruns_option()
def promote(name: str, version: int | None, force: bool, as_json: bool, mlruns: Path) -> None:
    """Make a version champion by force; without --force, say why it is not promoted."""
    from cnn_search import aliases, store

    _print(
        name, aliases.promote(store.open_store(mlruns, name), name, version, force=force), as_json
    )


def _print(name: str, move: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(move, indent=2))
    elif move is None:
        click.echo(f"{name}: that version is champion already.")
    else:
        click.echo(
            f"{name}: champion is version {move['to']} now, before: {move['from'] or 'none'}."
        )


if __name__ == "__main__":
    commands.start(main, "registry")
