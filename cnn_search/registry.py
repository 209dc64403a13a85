"""python -m cnn_search.registry list | show NAME | pull NAME: the models that sweeps registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cnn_search import commands


@click.group(no_args_is_help=False)
def main() -> None:
    """Look at the models that sweeps registered, and take them along."""


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@commands.mlruns_option()
def list_(as_json: bool, mlruns: Path) -> None:
    """Show every registered model that has a champion."""
    from cnn_search import models, store

    found = models.list_models(store.open_store(mlruns, ""))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found:
        click.echo("No model is registered yet. Run `python -m cnn_search.sweep digits` first.")
    for model in found if not as_json else []:
        click.echo(
            f"{model['name']:15} version {model['version']}, {_score(model)}, "
            f"{model['parameters']:,} parameters, trial {model['trial']} of {model['sweep']}"
        )


@main.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@commands.mlruns_option()
def show(name: str, as_json: bool, mlruns: Path) -> None:
    """Show what is known of a champion: its evidence, classes, hyperparameters, and its URI."""
    from cnn_search import models, store

    opened = store.open_store(mlruns, name)
    model = models.show_model(opened, name)
    if as_json:
        click.echo(json.dumps(model, indent=2))
        return
    click.echo(f"{model['name']} version {model['version']}: {_score(model)}")
    click.echo(f"trial {model['trial']} of {model['sweep']}, {model['parameters']:,} parameters")
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
@commands.mlruns_option()
def pull(name: str, folder: Path, mlruns: Path) -> None:
    """Write a champion's model, class names and configuration as plain files.

    NAME.keras opens with plain `keras.models.load_model`; it takes raw uint8 images and returns
    class probabilities.
    """
    from cnn_search import models, store

    for path in models.pull_model(store.open_store(mlruns, name), name, folder):
        click.echo(str(path))


def _score(model: dict[str, Any]) -> str:
    return f"{model['objective']} {model['score']:.4f} (evidence: {model['evidence']})"


if __name__ == "__main__":
    commands.start(main, "registry")
