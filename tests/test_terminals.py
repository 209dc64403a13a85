"""Tests of what people have before them: narrow terminals, pipes, other scripts than Latin."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from cnn_search import datasets
from cnn_search.answer import answer
from cnn_search.ledger import read_record
from cnn_search.progress import show_answer

ROOT = Path(__file__).parent.parent
CLASSES = ["Käse & Brot", "日本", "c'"]


@pytest.mark.parametrize(("width", "last"), [(50, "accuracy"), (80, "gain"), (120, "seconds")])
def test_a_narrow_terminal_gets_fewer_columns_each_of_them_whole(width: int, last: str) -> None:
    told = StringIO()
    record = read_record(ROOT / "docs" / "results" / "digits.jsonl")
    show_answer(Console(file=told, width=width), answer(record))
    lines = told.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    head = next(line for line in lines if line.startswith("┃"))
    assert last in head.split("┃")[-2]
    assert "…" not in told.getvalue()
    assert "baseline vgg_bn, last weights" in told.getvalue()


@pytest.mark.slow
def test_a_folder_and_classes_in_any_script_are_swept_through_a_pipe(tmp_path: Path) -> None:
    photos = tmp_path / "Fotos ü 写真"
    digits = datasets.load("digits", train_limit=150).train
    for number, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        if label < len(CLASSES):
            (photos / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            pixels = np.repeat(np.repeat(image[..., 0], 2, axis=0), 2, axis=1)
            Image.fromarray(pixels).save(photos / CLASSES[label] / f"{number} é.png")

    def run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-m", f"cnn_search.{command}", *map(str, arguments)]
        settings = {**os.environ, "LC_ALL": "C", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            given, cwd=tmp_path, env=settings, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "Warning" not in done.stderr
        return done

    assert run("init", "mine", "--data", photos.name).stderr == ""
    few = ["--trials", 1, "--epochs", 1, "--workers", 0, "--no-final"]
    swept = run("sweep", photos.name, *few)
    assert "Fotos ü 写真: " in swept.stderr
    assert "this sweep, and its model, are called Fotos_____\n" in swept.stderr
    [folder] = (tmp_path / "mlruns" / "sweeps").iterdir()
    page = run("report", folder.name.rsplit("-", 2)[0])
    assert str(folder.relative_to(tmp_path)) in page.stdout + page.stderr
    assert (folder / "report.html").exists()
    seen = run("predict", folder.name.rsplit("-", 2)[0], next(photos.glob("日本/*")))
    assert all(f"{name} " in seen.stdout for name in CLASSES)
