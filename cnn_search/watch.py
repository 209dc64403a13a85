"""python -m cnn_search.watch [NAME]: a sweep from another terminal, as it runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cnn_search import commands
from cnn_search.errors import LedgerError

SECONDS = 1.0  # between two looks
PAUSE = 30.0  # seconds after an end in which it may go on


@click.command()
@click.argument("name", required=False)
@click.option("--once", is_flag=True, help="Show how it stands now, and end.")
@commands.mlruns_option()
def main(name: str | None, once: bool, mlruns: Path) -> None:
    """Show a sweep's trials, best so far, rungs, workers and time left, until it ends or Ctrl-C.

    NAME is a sweep's; without it, the one that was written to last. Its ledger is read and nothing
    is written: the sweep does not notice.

    \b
    Examples:
        python -m cnn_search.watch
        python -m cnn_search.watch cifar10 --once
    """
    from rich.console import Console
    from rich.live import Live

    from cnn_search import dashboard, ledger

    folder = ledger.find_sweep(mlruns, name) if name else ledger.newest_sweep(mlruns)
    if folder is None:
        which = f"a sweep called {name!r}" if name else "a sweep"
        raise LedgerError(
            f"watch: expected {which} in {ledger.sweeps_folder(mlruns)}; there is none. Run one "
            "first, or pass --mlruns."
        )
    console = Console()
    board = dashboard.Dashboard(folder)
    board.look()
    if once or not console.is_terminal:
        console.print(board.draw(console.width, console.height if console.is_terminal else 0))
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        # after its search, a sweep goes on with its final scoring
        while not board.ended or time.time() - board.record.last_time < PAUSE:
            live.update(board.draw(console.width, console.height), refresh=True)
            time.sleep(SECONDS)
            board.look()
    console.print(board.draw(console.width, console.height))


if __name__ == "__main__":
    commands.start(main, "watch")
