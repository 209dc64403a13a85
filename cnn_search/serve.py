"""python -m cnn_search.serve NAME: a champion behind HTTP, by MLflow's scoring server."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import click

from cnn_search import commands


@click.command()
@click.argument("name")
@click.option("--port", type=click.IntRange(1, 65535), help="To listen on [a free one].")
@commands.alias_option()
@commands.mlruns_option()
def main(name: str, port: int | None, alias: str, mlruns: Path) -> None:
    """Answer requests on this machine with what a champion predicts, until Ctrl-C.

    A request has raw uint8 images of the model's size, the answer class probabilities. The server
    is MLflow's, listens on 127.0.0.1, and has no login.

    \b
    Examples:
        python -m cnn_search.serve cifar10
    """
    from cnn_search import models, servers, store

    opened = store.open_store(mlruns, name)
    model = models.show_model(opened, name, alias)
    port = port or servers.free_port()
    # by its version: the alias may move before the server reads it
    uri = f"models:/{name}/{model['version']}"
    arguments = ["models", "serve", "--model-uri", uri, "--env-manager", "local"]
    click.echo(f"{name} version {model['version']}, {alias}: {model['summary']}; starting ...")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        example = models.fetch_example(opened, model["run"], Path(folder))
        process = stack.enter_context(servers.running(arguments, port, "/ping", opened.uri))
        address = f"http://{servers.HOST}:{port}/invocations"
        click.echo(f"{address} answers; Ctrl-C ends it.")
        if example:
            click.echo(f"  curl {address} -H 'Content-Type: application/json' -d @{example}")
        click.echo(f"The classes, in the order of the answer: {json.dumps(model['class_names'])}")
        servers.wait(process)
    click.echo("ended")


if __name__ == "__main__":
    commands.start(main, "serve")
