"""python -m cnn_search.predict NAME PHOTO...: what a champion takes photos for."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

import click

from cnn_search import commands


@click.command()
@click.argument("name")
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@click.option(
    "--top", type=click.IntRange(min=1), default=3, show_default=True, help="So many classes."
)
@click.option(
    "--explain",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw which pixels speak for the first class, and which against it.",
)
@commands.alias_option()
@commands.json_option()
@commands.mlruns_option()
def main(
    name: str,
    photos: tuple[str, ...],
    top: int,
    explain: Path | None,
    alias: str,
    as_json: bool,
    mlruns: Path,
) -> None:
    """Say what is seen on photos, with probabilities, the most probable class first.

    NAME is a registered model (`registry list`), the path of a .keras file as `registry pull`
    writes it, or a network as ImageNet trained it: vgg16, resnet50, densenet121, mobilenetv3large,
    efficientnetv2b0 (Keras downloads its weights once). A photo is a PNG or JPEG of any size,
    upright as its EXIF says; - reads one from standard input. It is resized to the model's size,
    whatever its aspect, as the training images of a folder are.

    \b
    Examples:
        python -m cnn_search.predict cifar10 cat.jpg dog.png
        python -m cnn_search.predict cifar10 cat.jpg --explain why.png
        python -m cnn_search.predict vgg16 cat.jpg
    """
    from cnn_search import champion, sources

    if explain and (explain.suffix != ".png" or not explain.parent.is_dir()):
        raise click.UsageError(f"--explain: expected a .png in a folder; received '{explain}'.")
    chosen = champion.read(name, mlruns, alias)
    given = [BytesIO(sys.stdin.buffer.read()) if photo == "-" else Path(photo) for photo in photos]
    images = sources.read_photos(given, photos, chosen.input_shape)
    probabilities = chosen.model.predict(images, verbose=0)
    found = []
    for photo, row in zip(photos, probabilities, strict=True):
        best = row.argsort()[::-1][:top]
        classes = [(chosen.class_names[i], float(row[i])) for i in best]
        # a list: ImageNet has two kinds of crane
        told = [{"class": label, "probability": share} for label, share in classes]
        found.append({"photo": photo, "classes": told})
        if not as_json:
            said = ", ".join(f"{label} {share:.1%}" for label, share in classes)
            click.echo(f"{photo}: {said}")
    if as_json:
        click.echo(json.dumps({"model": chosen.title, "photos": found}, indent=2))
    if explain:
        from cnn_search import explanation, figures

        firsts = probabilities.argmax(axis=1)
        parts = [
            explanation.attributions(chosen.model, image, index)
            for image, index in zip(images, firsts, strict=True)
        ]
        captions = [
            f"{chosen.class_names[index]} {row[index]:.1%}"
            for index, row in zip(firsts, probabilities, strict=True)
        ]
        figures.save(figures.draw_explanations(images, parts, captions), explain)
        click.echo(f"{explain}: blue speaks for the class, orange against it", err=True)


if __name__ == "__main__":
    commands.start(main, "predict")
