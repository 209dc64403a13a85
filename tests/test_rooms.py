"""Tests of the house's plan: who may know whom, read from the imports of every module."""

import ast
import graphlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import pytest

from cnn_search import engines, sweep

ROOT = Path(__file__).parents[1]

ROOMS = {  # from the top to the bottom; a module knows its own room and those below
    "commands": "commands init sweep baseline score report watch ui replay registry predict serve "
    "export doctor api __main__",
    "search": "definition plan surroundings ledger statistics figures spaces samplers pruners "
    "oracles earlier engines cluster worker store evidence aliases promotion models tracking "
    "driver subject probe search retraining final ablation answer "
    "progress dashboard recorded reproduction findings discrepancies reconciliation "
    "views servers champion formats",
    "training": "backbones network hypermodels augmentation optimisation checkpoint training speed "
    "explanation",
    "data": "sources datasets",
    "foundation": "errors backend crash limits",
}
HEIGHT = {
    module: height
    for height, modules in enumerate(reversed(ROOMS.values()))
    for module in modules.split()
}
ROOM_OF = {module: room for room, modules in ROOMS.items() for module in modules.split()}

HOMES = {  # of each foreign library, the modules that may import it
    "mlflow": {
        f"cnn_search.{module}"
        for module in "store evidence aliases promotion models tracking findings discrepancies "
        "reconciliation".split()
    },
    "keras_tuner": {
        *("cnn_search.oracles", "cnn_search.samplers", "cnn_search.spaces"),
        *("cnn_search.hypermodels", "search_spaces"),
    },
    "matplotlib": {"cnn_search.figures"},
    "tensorflow": {"cnn_search.backend"},
    "dask": {"cnn_search.cluster"},
    "distributed": {"cnn_search.cluster", "cnn_search.worker"},
    "h5py": {"cnn_search.sources"},
    "PIL": {"cnn_search.sources"},
    "sklearn": {"cnn_search.sources"},
    "scipy": {"cnn_search.statistics", "cnn_search.speed", "cnn_search.report"},
    "optuna": {"cnn_search.samplers", "cnn_search.pruners", "cnn_search.report"},
    "plotly": {"cnn_search.report"},
    "jinja2": {"cnn_search.report"},
    "click": {f"cnn_search.{module}" for module in ROOMS["commands"].split()},
    "rich": {
        f"cnn_search.{module}" for module in "progress dashboard sweep score watch api".split()
    },
}
KNOWN_TO_SPACES = {"network", "augmentation", "optimisation", "training", "errors", "backbones"}


class Import(NamedTuple):
    module: str  # that imports
    line: int
    name: str  # what is imported, with its dots


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).glob("**/*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[Import]:
    """Gives every import of a file, also those inside functions; `from a import b` as a.b."""
    module = module_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: an import relative to the file"
            for alias in node.names:
                yield Import(module, node.lineno, f"{node.module}.{alias.name}")


IMPORTS = [found for path in sources("cnn_search", "search_spaces") for found in imports_of(path)]


def arrows() -> Iterator[tuple[str, str, str]]:
    """Gives (knowing, known, where) of modules of cnn_search."""
    for module, line, name in IMPORTS:
        package, _, inside = module.partition(".")
        knowing, parts = inside.split(".")[0], name.split(".")
        if package == parts[0] == "cnn_search" and len(parts) > 1 and parts[1] in HEIGHT:
            if knowing != parts[1]:  # a package's own modules are its own affair
                yield knowing, parts[1], f"{module}:{line}: {name}"


def test_every_module_has_a_room() -> None:
    modules = {path.stem for path in (ROOT / "cnn_search").iterdir() if path.suffix == ".py"}
    modules |= {path.parent.name for path in (ROOT / "cnn_search").glob("*/__init__.py")}
    modules -= {"__init__"}
    # a new module gets its room here, one that went leaves it
    assert modules == set(HEIGHT)


def test_no_arrow_runs_upwards() -> None:
    upwards = [
        f"{where} ({ROOM_OF[knowing]} -> {ROOM_OF[known]})"
        for knowing, known, where in arrows()
        if HEIGHT[known] > HEIGHT[knowing]
    ]
    assert upwards == []


def test_imports_are_not_cyclic() -> None:
    graph: dict[str, set[str]] = {}
    for knowing, known, _ in arrows():
        graph.setdefault(knowing, set()).add(known)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the modules in it


def test_every_import_of_the_package_was_understood() -> None:
    # else the tests above would see nothing, and pass
    found = {(knowing, known) for knowing, known, _ in arrows()}
    assert {("search", "tracking"), ("sweep", "search"), ("baseline", "training")} <= found
    strange = [
        found
        for found in IMPORTS
        if found.name.split(".")[0] == "cnn_search" and found.name.split(".")[1] not in HEIGHT
    ]
    assert strange == []


def test_spaces_know_the_configuration_and_nothing_of_the_search() -> None:
    foreign = {"keras", "keras_tuner", "numpy", "search_spaces"}
    strangers = [
        found
        for found in IMPORTS
        if found.module.startswith("search_spaces")
        and found.name.split(".")[0] not in {*foreign, *sys.stdlib_module_names}
        and not (
            found.name.startswith("cnn_search.") and found.name.split(".")[1] in KNOWN_TO_SPACES
        )
    ]
    assert strangers == []


def test_the_program_imports_no_space() -> None:
    assert [
        found
        for found in IMPORTS
        if found.module.startswith("cnn_search") and found.name.startswith("search_spaces")
    ] == []


@pytest.mark.parametrize("library", HOMES)
def test_a_foreign_library_has_one_home(library: str) -> None:
    strays = [
        f"{found.module}:{found.line}"
        for found in IMPORTS
        if found.name.split(".")[0] == library
        and not {".".join(found.module.split(".")[:n]) for n in (1, 2, 3)} & HOMES[library]
    ]
    assert strays == []


def test_no_backend_of_keras_is_known_behind_its_door() -> None:
    backends = {"tensorflow", "tf", "jax", "torch"}
    knowing = {found.module for found in IMPORTS if found.name.split(".")[0] in backends}
    assert knowing == {"cnn_search.backend"}


@pytest.mark.parametrize(
    "path",
    sources("cnn_search", "search_spaces", "sweeps", "tests", "benchmarks"),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_file_says_its_purpose_in_its_first_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    purpose = ast.get_docstring(ast.parse(text))
    assert text.startswith(('"""', '#!/usr/bin/env python3\n"""'))
    assert purpose is not None
    assert len(purpose.splitlines()[0].split()) >= 3
    assert path.stem not in {"utils", "util", "helpers", "base", "manager", "common", "misc"}


# From the command to model.fit


def own_frames() -> list[str]:
    """Gives the functions of ours on this thread's stack, the outermost first."""
    folders = (str(ROOT / "cnn_search"), str(ROOT / "search_spaces"))
    return [
        f"{Path(frame.filename).stem}.{frame.name}"
        for frame in traceback.extract_stack()
        if frame.filename.startswith(folders)
    ]


def test_four_frames_lie_between_the_command_and_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # set by MLflow for its children; undone at the end
    seen: dict[str, list[str]] = {}
    fit, submit = keras.Model.fit, engines.InlineEngine.submit

    def watched_fit(self: Any, *arguments: Any, **options: Any) -> Any:
        seen["fit"] = own_frames()
        return fit(self, *arguments, **options)

    def watched_submit(self: engines.InlineEngine, task: Any) -> None:
        seen["submit"] = own_frames()
        submit(self, task)

    monkeypatch.setattr(keras.Model, "fit", watched_fit)
    monkeypatch.setattr(engines.InlineEngine, "submit", watched_submit)
    options = (
        "--trials 1 --epochs 1 --train-limit 60 --threads 1 --workers 0 --no-final --json --mlruns"
    )
    code = sweep.main.main(["digits", *options.split(), str(tmp_path)], standalone_mode=False)
    assert code == 0
    assert seen["submit"][0] == "sweep.main"
    assert seen["fit"][-1] == "images.fit"
    assert len(seen["submit"]) <= 4, seen["submit"]
    assert len(seen["fit"]) <= 4, seen["fit"]
