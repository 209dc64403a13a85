"""cnn-search COMMAND: the same as python -m cnn_search.COMMAND."""

from __future__ import annotations

import runpy
import sys

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


def main() -> None:
    """Run the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        for command, purpose in COMMANDS.items():
            print(f"cnn-search {command:10} {purpose}", file=sys.stderr)
        sys.exit(0 if name in ("--help", "-h") else 2)
    del sys.argv[1]
    runpy.run_module(f"cnn_search.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
