"""What all commands share: how they start, and how they say that a user made a mistake."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cnn_search.errors import CnnSearchError

INTERRUPTED = 130
# in a process of its own, a trial that crashes costs the sweep nothing but itself, and memory that
# somebody's code keeps goes with it (docs/design.md)
WORKERS = 1

KEYS = {  # of a sweep's TOML file, by the option that sets them, where their names differ
    "space": "search_space",
    "epochs": "training.epochs",
    "oracle": "oracle.kind",
    "pruner": "pruner.kind",
    "disk_quota": "disk_megabytes",
    **{k: f"engine.{k}" for k in ("workers", "scheduler", "insecure", "gpus", "threads")},
}


def start(command: click.Command, name: str) -> None:
    """Run a command: a user's mistake is one line on stderr and exit code 2; a bug a traceback."""
    try:
        code = command.main(prog_name=f"python -m cnn_search.{name}", standalone_mode=False)
    except click.ClickException as error:
        message = error.format_message().replace("\n\t", " ")  # click's lists of choices
        context = getattr(error, "ctx", None)
        hint = f" Try `{context.command_path} --help`." if context is not None else ""
        click.echo(f"error: {message}{hint}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except CnnSearchError as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(2)
    sys.exit(code or 0)


def mlruns_option() -> Callable[[Any], Any]:
    """Return the option --mlruns."""
    return click.option(
        "--mlruns",
        type=click.Path(path_type=Path),
        default=Path("mlruns"),
        show_default=True,
        help="Folder of the ledgers, and of MLflow's database and artifacts.",
    )


def json_option() -> Callable[[Any], Any]:
    """Return the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


def alias_option() -> Callable[[Any], Any]:
    """Return the option --alias."""
    return click.option(
        "--alias",
        type=click.Choice(["champion", "challenger"]),
        default="champion",
        show_default=True,
        help="Which version: the best, or the last that was not promoted.",
    )


def engine_options() -> Callable[[Any], Any]:
    """Return the options that say where trials run; see `definition.EngineTable`."""
    options = [
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Worker processes here, each for one trial at a time; 0: in this process [1].",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="tls://HOST:PORT of a dask scheduler."),
        click.option(
            "--insecure", is_flag=True, default=None, help="Allow another machine without TLS."
        ),
        click.option("--gpus", type=click.FloatRange(min=0), help="GPUs of a trial, or a share."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads of a trial [its share of the cores; as before in a final scoring].",
        ),
    ]

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def parse_pair(text: str, option: str) -> tuple[str, Any]:
    """Return name and value of "name=value"; the value is read as TOML, else it is a text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{option}: expected name=value; received {text!r}.")
    try:
        return name.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
