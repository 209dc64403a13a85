"""cnn-search COMMAND: the same as python -m cnn_search.COMMAND; and its completion in a shell."""

from __future__ import annotations

import importlib
import os
import runpy
import sys

import click

COMMANDS = {
    "sweep": "train the book's model, search for a better one, register it",
    "init": "write a sweep of your own images, to edit and run",
    "baseline": "train a tutorial's model alone, as the tutorial does",
    "score": "train the best and the book's model anew, score them on the test part",
    "report": "write what a sweep found as one HTML page",
    "replay": "train a trial again from what MLflow has of it, and compare",
    "registry": "list, show, pull, promote or roll back the models that sweeps registered",
    "watch": "show a sweep from another terminal, as it runs",
    "ui": "show every trial in MLflow's pages",
    "predict": "say what a champion sees on photos, and why",
    "serve": "answer requests with what a champion predicts",
    "export": "write a champion as SavedModel, ONNX or LiteRT",
    "doctor": "say where ledgers, MLflow and files disagree, and reconcile them",
}


def command_of(name: str) -> click.Command:
    """Return one of `COMMANDS`, imported."""
    module = "report.__main__" if name == "report" else name
    command: click.Command = importlib.import_module(f"cnn_search.{module}").main
    command.short_help = COMMANDS[name]
    return command


class _All(click.Group):
    """All commands as one, which a shell asks for completions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command_of(cmd_name) if cmd_name in COMMANDS else None


def main() -> None:
    """Run the command that is named first."""
    if "_CNN_SEARCH_COMPLETE" in os.environ:
        _All().main(prog_name="cnn-search")
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        for command, purpose in COMMANDS.items():
            print(f"cnn-search {command:10} {purpose}", file=sys.stderr)
        sys.exit(0 if name in ("--help", "-h") else 2)
    del sys.argv[1]
    runpy.run_module(f"cnn_search.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
