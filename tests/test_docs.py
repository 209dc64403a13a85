"""Tests of the documentation: the site builds, loads nothing from others, its commands exist."""

import contextlib
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

import cnn_search
from cnn_search.__main__ import COMMANDS, command_of
from cnn_search.augmentation import AugmentationConfig
from cnn_search.datasets import load
from cnn_search.definition import Definition, read
from cnn_search.network import BlockConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.spaces import declared
from cnn_search.training import Protocol, Setup, make_space

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
GIVEN = ("cat.jpg", "photo.png", "dog.png", "ledger.jsonl")  # files that commands of the pages name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    silent = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=silent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for name, v in attributes if LOADS.get(tag) == name]


def test_every_page_is_in_the_site_and_loads_nothing_from_another_host(site: Path) -> None:
    pages = sorted(site.glob("**/*.html"))
    assert {path.name for path in pages} >= {"index.html", "commands.html", "configuration.html"}
    for path in pages:
        outside = [found for found in Loaded(path.read_text()).found if "//" in found]
        assert outside == [], path.name


def test_the_site_has_every_command_and_every_key(site: Path) -> None:
    commands = (site / "commands.html").read_text()
    assert all(f'id="{name}"' in commands for name in COMMANDS)
    assert "python -m cnn_search.registry rollback [OPTIONS]" in commands
    keys = (site / "configuration.html").read_text()
    for name, field in Definition.model_fields.items():
        assert f"<code>{name}</code>" in keys or f"[{name}]" in keys, field
    named = (site / "python.html").read_text()
    assert all(f"cnn_search.{name}" in named for name in cnn_search.__all__)
    fields = (site / "spaces.html").read_text()
    for config in (NetworkConfig, BlockConfig, AugmentationConfig, TrainingConfig):
        assert all(f"<code>{field.name}</code>" in fields for field in dataclasses.fields(config))
    assert "&lt;!--" not in commands + keys + named + fields
    assert "cnn_search" in (site / "index.html").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_text_are_lines_to_copy(name: str) -> None:
    command = command_of(name)
    told = command.get_help(click.Context(command, info_name=name)).splitlines()
    for line in (command.help or "").partition("Examples:\n")[2].splitlines():
        assert line.strip() in [one.strip() for one in told]


def blocks_of(page: Path, kind: str) -> list[str]:
    """The blocks of a page's code that are of a kind, a regular expression."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = [(page, kind) for page in PAGES for kind in ("toml", "python") if blocks_of(page, kind)]


@pytest.mark.parametrize(
    ("page", "kind"), BLOCKS, ids=lambda part: part if isinstance(part, str) else part.name
)
def test_the_code_of_a_page_runs(page: Path, kind: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks_of(page, kind)):
        file = tmp_path / f"block_{number}.{kind}"
        if kind == "toml":
            file.write_text('data = "digits"\n' + block, encoding="utf-8")
            read(str(file), {})
            continue
        file.write_text(block, encoding="utf-8")
        command = [sys.executable, str(file)]
        found = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=found, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_spaces_of_the_page_on_spaces_can_be_searched(tmp_path: Path) -> None:
    for block, name in zip(
        blocks_of(ROOT / "docs/spaces.md", "python"), ("Space", "build"), strict=True
    ):
        file = tmp_path / f"{name}.py"
        file.write_text(block, encoding="utf-8")
        setup = Setup(f"{file}:{name}", Protocol(1), tmp_path)
        space = make_space(setup, load("digits", train_limit=100))
        assert len(declared(space).space) > 2


def commands_of(page: Path) -> list[str]:
    """The commands in a page's code, without what is said of them beside."""
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(page, r"\w*")
    inline = [s for s in re.findall(r"`(python -m cnn_search[^`]*)`", text) if "\n" not in s]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.split(r"  +|\s#", line)[0] for line in lines if "python -m cnn_search." in line]
    return [line[line.index("python -m") :] for line in found + inline]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in GIVEN:
        Path(name).touch()
    Path("docs/results").mkdir(parents=True)
    for ledger in ROOT.glob("docs/results/*.jsonl"):
        Path("docs/results", ledger.name).touch()
    for line in commands_of(page):
        if re.search(r"[…|]|(^|[ .])NAME([ .]|$)", line):  # not meant to be typed as they are
            continue
        name, *arguments = shlex.split(line)[2:]
        command = command_of(name.removeprefix("cnn_search."))
        if isinstance(command, click.Group):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        with contextlib.suppress(click.exceptions.Exit):  # --help
            command.make_context(line, list(arguments))
