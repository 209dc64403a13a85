"""python -m cnn_search.ui [NAME]: MLflow's own pages, at the trials of a sweep."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from cnn_search import commands
from cnn_search.errors import TrackingError


@click.command()
@click.argument("name", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="To listen on [a free one].")
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@commands.mlruns_option()
def main(name: str | None, port: int | None, no_open: bool, mlruns: Path) -> None:
    """Show every trial, its curves and pictures, in MLflow's pages, until Ctrl-C.

    Without NAME, the page of all experiments. Where MLFLOW_TRACKING_URI names a server, its pages
    are shown; else one is started on 127.0.0.1, which has no login.

    \b
    Examples:
        python -m cnn_search.ui
        python -m cnn_search.ui cifar10
    """
    from cnn_search import servers, store, views

    opened = store.open_store(mlruns, name or "Default")
    page = "/#/experiments"
    if name:
        experiment = opened.experiment_id(opened.client())
        if experiment is None:
            raise TrackingError(
                f"MLflow: expected a sweep called {name!r} in {opened.address}; there is none. "
                "Run it first, or leave the name out."
            )
        page = views.page(experiment)
    if opened.address.startswith("http"):
        _show(opened.address.rstrip("/") + page, no_open)
        return
    port = port or servers.free_port()
    arguments = ["server", "--workers", "1"]
    click.echo("starting MLflow ...")
    with servers.running(arguments, port, "/health", opened.uri) as process:
        _show(f"http://{servers.HOST}:{port}{page}", no_open)
        click.echo("Ctrl-C ends it.")
        servers.wait(process)
    click.echo("ended")


def _show(address: str, no_open: bool) -> None:
    click.echo(address)
    if not no_open:
        webbrowser.open(address)


if __name__ == "__main__":
    commands.start(main, "ui")
