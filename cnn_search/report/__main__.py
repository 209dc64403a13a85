"""python -m cnn_search.report NAME: a sweep as one page, with twins in Markdown and JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from cnn_search import commands
from cnn_search.errors import LedgerError, TrackingError


@click.command()
@click.argument("name", required=False)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A ledger instead of NAME; nothing else of the sweep is needed.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="The page; its twins go beside it [report.html in the sweep's folder].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON twin.")
@commands.mlruns_option()
def main(
    name: str | None, ledger: Path | None, to: Path | None, as_json: bool, mlruns: Path
) -> None:
    """Write what a sweep found as one HTML file that needs no network.

    NAME is a sweep's; its newest run is shown, finished or not. Where its folder is not on this
    machine, its ledger is fetched from MLflow. The page is left in MLflow as an artifact of the
    sweep's run too. Nothing is trained, and no image is read.

    \b
    Examples:
        python -m cnn_search.report digits
        python -m cnn_search.report --ledger docs/results/digits.jsonl --to digits.html
    """
    if (name is None) == (ledger is None):
        raise click.UsageError("Expected either NAME or --ledger FILE.")
    if to is not None and to.suffix != ".html":
        raise click.UsageError(f"--to: expected the name of an .html file; received '{to}'.")
    from cnn_search.ledger import find_sweep
    from cnn_search.report import page

    with tempfile.TemporaryDirectory() as temporary:
        folder = find_sweep(mlruns, name) if name is not None else None
        if ledger is not None:
            source = ledger
        elif folder is not None:
            source = folder / "ledger.jsonl"
        else:
            source = _fetch(str(name), mlruns, Path(temporary))
        made = page.make(source)
    beside = Path() if source.parent == Path(temporary) else source.parent
    own = "report.html" if source.name == "ledger.jsonl" else f"{source.stem}.html"
    target = page.save(made, to or beside / own)
    if as_json:
        click.echo(json.dumps(made.twin, indent=1))
    else:
        click.echo(made.twin["answer"]["sentence"])
        click.echo(f"\n{target}, with {target.stem}.md and {target.stem}.json beside it")
    if name is not None:
        if why := page.publish(target, name, made.twin["answer"]["sweep"], mlruns):
            click.echo(f"note: {why}", err=True)


def _fetch(name: str, mlruns: Path, folder: Path) -> Path:
    """Return the ledger that MLflow has of a sweep."""
    from cnn_search import store

    try:
        return store.fetch_ledger(store.open_store(mlruns, name), name, folder)
    except TrackingError as error:
        raise LedgerError(
            f"report: expected a sweep that ran; there is none called {name!r} in {mlruns}. Run "
            f"`python -m cnn_search.sweep {name}` first, or pass --mlruns or --ledger. ({error})"
        ) from None


if __name__ == "__main__":
    commands.start(main, "report")
