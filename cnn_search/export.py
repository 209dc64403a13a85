"""python -m cnn_search.export NAME --format FORMAT: a champion for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cnn_search import commands
from cnn_search.surroundings import usable_cores

ENDINGS = {"savedmodel": ".savedmodel", "onnx": ".onnx", "litert": ".tflite"}


@click.command()
@click.argument("name")
@click.option("--format", "kind", type=click.Choice(list(ENDINGS)), required=True)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file, of a SavedModel the folder [NAME.onnx, NAME.tflite, NAME.savedmodel].",
)
@commands.alias_option()
@commands.json_option()
@commands.mlruns_option()
def main(name: str, kind: str, to: Path | None, alias: str, as_json: bool, mlruns: Path) -> None:
    """Write a champion as a TensorFlow SavedModel, ONNX or LiteRT (TensorFlow Lite) file.

    NAME is a registered model, or the path of a .keras file as `registry pull` writes it; what
    that writes is Keras's own format. What was written is run, and must predict what Keras does.
    It takes raw uint8 images and returns class probabilities; its classes are written beside it.

    \b
    Examples:
        python -m cnn_search.export cifar10 --format onnx
    """
    from cnn_search import backend

    backend.prepare(usable_cores())
    backend.load()
    from cnn_search import champion, formats

    formats.check(kind)
    chosen = champion.read(name, mlruns, alias)
    target = to or Path(f"{Path(name).name.removesuffix('.keras')}{ENDINGS[kind]}")
    written = formats.write(chosen, kind, target)
    if as_json:
        click.echo(json.dumps({"path": str(written.path), "difference": written.difference}))
        return
    click.echo(
        f"{written.path}: {chosen.title}; the probabilities of {formats.CHECKED} images of noise "
        f"differ from Keras's by {written.difference:.1g} at most"
    )


if __name__ == "__main__":
    commands.start(main, "export")
