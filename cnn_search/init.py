"""python -m cnn_search.init NAME --data PATH: a sweep of your own images, to edit and run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from cnn_search import commands, definition
from cnn_search.errors import DefinitionError
from cnn_search.surroundings import usable_cores

TOML = """\
# {about}
#
# python -m cnn_search.sweep {file}
data = {data}
search_space = {space}
trials = 36  # most end early: at each rung all but the best third
# minutes = 60  # end after the epoch that runs then, whatever is left
# objective = "val_accuracy"  # or val_loss, val_balanced_accuracy, val_macro_f1
# recipes = true  # first try what the space recommends, if it does
{size}
[training]
epochs = 15
# class_weights = true  # where some classes have few images
# precision = "mixed_bfloat16"  # faster on a processor with AVX512-BF16, or a GPU

# [oracle]
# kind = "tpe"  # or random, grid, bayesian, hyperband, gp
# [pruner]
# kind = "asha"  # or none, median, percentile
# [constraints]
# parameters = "<= 500_000"  # also flops, megabytes, epoch_seconds

[final]  # trained anew with fresh seeds, and scored once on the test part
top = 2
seeds = 3

[space]  # a value fixes, a list narrows; what is left out varies as here
{choices}
"""

SPACE = '''\
"""What may vary for {name}: search_spaces/images.py has all that can be changed."""

from search_spaces import images


class Space(images.Space):
    """What may vary for {name}; the tutorial's values, of trial 0, must be among it."""

    depth = (2, 3, 4)  # blocks
    filters = (16, 32, 64, 128, 256)  # of each block
    dropout = (0.0, 0.2, 0.3, 0.4)  # of each block
    shift = (0.0, 0.1, 0.2)  # as a share of the side
    flip = (True, False)  # left and right
'''


@click.command()
@click.argument("name")
@click.option("--data", required=True, help="Your images: a folder, an .npz or an .h5.")
@click.option("--space", "with_space", is_flag=True, help="Also write a space of your own.")
def main(name: str, data: str, with_space: bool) -> None:
    """Write NAME.toml, a sweep of your own images with all that may vary, to edit and run.

    The images are read, so that what is wrong with them is said now. With --space, NAME_space.py
    too, a class of a few lines. Nothing that is there is overwritten.

    \b
    Examples:
        python -m cnn_search.init flowers --data photos/
        python -m cnn_search.sweep flowers.toml
    """
    if not re.fullmatch(definition.NAME, name):
        raise DefinitionError(
            f"{name}: expected letters, digits, '.', '_' and '-', the first a letter or digit."
        )
    files = [Path(f"{name}.toml")] + [Path(f"{name}_space.py")] * with_space
    for file in files:
        if file.exists():
            raise DefinitionError(f"{file}: expected to be written anew; it is there. Remove it.")
    from cnn_search import backend, datasets, progress

    backend.prepare(usable_cores())
    dataset = datasets.load(data)
    backend.load()
    from cnn_search.spaces import declared
    from cnn_search.training import Protocol, find_space

    reference = f"{files[1]}:Space" if with_space else "images"
    height, width, _ = dataset.input_shape
    size = f"image_size = [{height}, {width}]  # height, width; all are resized to it\n"
    try:
        if with_space:
            files[1].write_text(SPACE.format(name=name), encoding="utf-8")
        space = find_space(reference)(
            dataset.input_shape, dataset.classes, len(dataset.train.labels), Protocol(15)
        )
        text = TOML.format(
            about=progress.describe_data(dataset).splitlines()[0],
            file=files[0],
            data=json.dumps(data, ensure_ascii=False),
            space=json.dumps(reference),
            size=size if Path(data).is_dir() else "",
            choices="\n".join(map(_choice, declared(space).space)),
        )
        files[0].write_text(text, encoding="utf-8")
    except OSError as error:
        raise DefinitionError(
            f"{files[0]}: expected a folder that can be written; {error.strerror}. Go to another."
        ) from None
    for line in progress.describe_data(dataset).splitlines():
        click.echo(line)
    click.echo(f"{' and '.join(map(str, files))}: edit, then")
    click.echo(f"  python -m cnn_search.sweep {files[0]} --dry-run --probe")
    click.echo(f"  python -m cnn_search.sweep {files[0]}")


def _choice(hp: Any) -> str:
    """Return a hyperparameter as a line of [space] that changes nothing."""
    values = list(hp.values)
    if hasattr(hp, "min_value"):
        return f"# {hp.name} = {json.dumps(hp.default)}  # from {hp.min_value} to {hp.max_value}"
    return f"# {hp.name} = {json.dumps(values if len(values) > 1 else values[0])}"


if __name__ == "__main__":
    commands.start(main, "init")
