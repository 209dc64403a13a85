"""Tests of what leaves the house: the wheel in an environment of its own, and the README."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from cnn_search.__main__ import COMMANDS
from cnn_search.definition import shipped

ROOT = Path(__file__).parents[1]
PACKAGES = ("cnn_search", "search_spaces", "sweeps")
README = ROOT / "README.md"


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy, so that nothing is left in the working tree."""
    source = tmp_path_factory.mktemp("source")
    for package in (*PACKAGES, "tests"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    # pyproject.toml wants a newer setuptools than Python 3.11 brings; then pip fetches it
    version = importlib.metadata.version("setuptools") if has_setuptools() else "0"
    isolation = ["--no-isolation"] if int(version.partition(".")[0]) >= 77 else []
    run(sys.executable, "-m", "build", "--wheel", *isolation, source, cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def has_setuptools() -> bool:
    return any(importlib.metadata.distributions(name="setuptools"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives the Python of an environment that has the wheel and borrows all it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    found = folder / "bin" / "python"
    install = ["--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    run(sys.executable, "-m", "pip", "--python", found, "install", *install, cwd=folder)
    # a path from a .pth file stands behind the environment's own, and its .pth files are not read:
    # cnn_search is not installed there in any way that counts
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def test_the_wheel_holds_the_program_its_spaces_and_its_sweeps_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".toml", ".html", ".md") or path.name == "py.typed"
    }
    assert names == expected
    assert {"cnn_search/py.typed", "sweeps/digits.toml", "search_spaces/digits.py"} <= names


def test_the_wheel_works_in_an_environment_of_its_own(python: Path, tmp_path: Path) -> None:
    code = "import cnn_search, search_spaces, sweeps as s; print(cnn_search.__file__, s.__file__)"
    for file in run(python, "-c", code, cwd=tmp_path).split():
        assert Path(file).is_relative_to(python.parents[1])
    listed = run(python, "-m", "cnn_search.sweep", "--list", cwd=tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == list(shipped())
    assert run(python.with_name("cnn-search"), "sweep", "--list", cwd=tmp_path) == listed
    assert not list(tmp_path.iterdir())


def test_the_wheel_finds_its_spaces_and_sweeps(python: Path, tmp_path: Path) -> None:
    code = (
        "from cnn_search import backend, definition, training; backend.prepare(1)\n"
        "space = training.find_space(definition.read('digits').search_space)\n"
        "print(*space.baselines)"
    )
    assert run(python, "-c", code, cwd=tmp_path) == "vgg_bn\n"


# The README

needs_readme = pytest.mark.skipif(
    not README.is_file() or not README.read_text(encoding="utf-8").strip(),
    reason="no README.md yet",
)


@needs_readme
def test_every_relative_link_of_the_readme_leads_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    missing = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        if not (ROOT / path).exists() if path else anchor not in anchors:
            missing.append(link)
    assert missing == []


@needs_readme
def test_every_file_of_the_readmes_tree_exists() -> None:
    blocks = re.findall(
        r"^```[^\n]*\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    trees = [block for block in blocks if re.search(r"(?m)^\W*cnn_search/(\s|$)", block)]
    assert trees, "the README has a tree of the project's files, with a line `cnn_search/`"
    missing = []
    for tree in trees:
        folders: list[tuple[int, Path]] = []  # (indentation, folder) of the lines around
        for line in tree.splitlines():
            found = re.match(r"([\s│├└─|`+-]*)((?:[\w.*-]+/)*[\w.*-]*)(?:\s|$)", line)
            if not found or not re.search(r"[/.]|^[A-Z]\w+file$|LICENSE", found[2]):
                continue
            indentation, name = len(found[1]), found[2]
            folders = [(depth, folder) for depth, folder in folders if depth < indentation]
            parent = folders[-1][1] if folders else ROOT
            path = parent / name
            if name.rstrip("/") == ROOT.name or name == "./":
                path = ROOT  # the tree's root
            elif not list(parent.glob(name.rstrip("/"))):
                missing.append(str(path.relative_to(ROOT)))
            if name.endswith("/"):
                folders.append((indentation, path))
    assert missing == []


@needs_readme
def test_every_command_of_the_readme_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(
        re.findall(r"(?:-m cnn_search\.|^cnn-search |`cnn-search )(\w+)", text, re.MULTILINE)
    )
    assert named
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"(?:^|`|\$ )make ([a-z][a-z-]*)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_every_command_has_its_module() -> None:
    for command in COMMANDS:
        module = ROOT / "cnn_search" / f"{command}.py"
        if not module.exists():
            module = ROOT / "cnn_search" / command / "__main__.py"
        assert f'commands.start(main, "{command}")' in module.read_text(encoding="utf-8")
