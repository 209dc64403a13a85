"""Tests of `cnn_search.definition`: a TOML file in, a checked definition or every problem out."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from cnn_search import datasets
from cnn_search.definition import (
    NOT_IN_DIGEST,
    Definition,
    EngineTable,
    FinalTable,
    OracleTable,
    PrunerTable,
    RegistryTable,
    StopTable,
    TrainingTable,
    differences,
    digest,
    from_record,
    purpose,
    read,
    shipped,
)
from cnn_search.errors import DefinitionError
from cnn_search.training import OBJECTIVES, find_space

WRONG = """
data = "digits"
trails = 5
seed = 0
trials = "many"
minutes = -1
name = "two words"

[training]
epochs = 2.5
epoch = 3
monitor = "loss"

[oracle]
kind = "bayes"

[final]
seeds = 1

[tuner]
kind = "random"
"""

PROBLEMS = """
name: expected .*match pattern.*; received "two words"
trials: expected a valid integer; received "many"
minutes: expected greater than 0; received -1
seed: expected greater than or equal to 1; received 0
[training] epochs: expected a valid integer.*; received 2.5
[training] monitor: expected 'val_loss' or 'val_accuracy'; received "loss"
[training] epoch: no such key; did you mean epochs?
[oracle] kind: expected 'random', 'grid', 'bayesian', 'hyperband', 'tpe' or 'gp'; received "bayes"
trails: no such key; did you mean trials?
[final] seeds: expected greater than or equal to 2; received 1
tuner: no such key; did you mean pruner?
"""


def write(folder: Path, text: str, name: str = "own.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(name: str, changes: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        read(name, changes)
    return str(caught.value).splitlines()


# What is wrong with a file


def test_all_problems_of_a_file_are_told_at_once_a_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG)
    found = problems(path)
    expected = PROBLEMS.strip().splitlines()
    assert len(found) == len(expected)
    for line in expected:
        pattern = line.replace("[", r"\[").replace("]", r"\]").replace("?", r"\?")
        with pytest.raises(DefinitionError, match=f"(?m)^{path}: {pattern}[.,]? ?.*$"):
            read(path)
    assert all(line.startswith(f"{path}: ") and line.endswith("Correct it.") for line in found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trial = 3", "trial: no such key; did you mean trials"),
        ("[training]\nepoch = 3", r"\[training\] epoch: no such key; did you mean epochs"),
        ("[oracle]\nkinds = 'grid'", r"\[oracle\] kinds: no such key; did you mean kind"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(DefinitionError, match=message):
        read(write(tmp_path, f'data = "digits"\n{line}\n'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = 0", "seed: expected greater than or equal to 1; received 0"),
        ("seed = 2147483648", "seed: expected less than 2147483648; received 2147483648"),
        ("trials = 0", "trials: expected greater than or equal to 1; received 0"),
        ("trials = true", "trials: expected a valid integer; received true"),
        ("minutes = nan", "minutes: expected less than or equal to 1000000; received NaN"),
        ("minutes = 0", "minutes: expected greater than 0; received 0"),
        ("keep_models = 0", "keep_models: expected greater than or equal to 1; received 0"),
        ("train_limit = '5'", 'train_limit: expected a valid integer; received "5"'),
        ("image_size = [3, 8]", "image_size.0: expected greater than or equal to 4; received 3"),
        ("image_size = [8, 8, 3]", r"image_size: expected .*2 items.*; received \[8, 8, 3\]"),
        ("objective = 'accuracy'", "objective: expected 'val_accuracy', .*; received \"accuracy\""),
        ("training = 3", "training: expected an object; received 3"),
        ("trials = 2026-01-31", 'trials: expected a valid integer; received "2026-01-31"'),
        ("[training]\npatience = -1", r"\[training\] patience: expected greater than or equal"),
        ("[training]\nclass_weights = 1", r"\[training\] class_weights: expected a valid boolean"),
        ("[oracle]\nfactor = 1", r"\[oracle\] factor: expected greater than or equal to 2; rec"),
        ("[oracle]\nover = 'kernel'", r"\[oracle\] over: expected a valid .*; received \"kernel\""),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected_and_received(
    tmp_path: Path, line: str, message: str
) -> None:
    path = write(tmp_path, f'data = "digits"\n{line}\n')
    with pytest.raises(DefinitionError, match=f"^{path}: {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ['data = "digits', "data = digits", "data = 1\ndata = 2", "\x00", "[training"]
)
def test_a_broken_toml_is_one_line_with_its_place(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    (line,) = problems(path)
    assert line.startswith(f"{path}: expected a TOML file; ")
    assert "line 1" in line or "line 2" in line or "end of document" in line
    assert line.endswith("Correct it.")


def test_a_toml_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes('data = "Blümchen"'.encode("latin1"))
    (line,) = problems(str(path))
    assert line.startswith(f"{path}: expected a TOML file; ")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "trials = 3")
    assert f"{path}: data: expected a value; there is none. Add it." in problems(path)


def test_grid_wants_to_know_over_what(tmp_path: Path) -> None:
    (line,) = problems("digits", {"oracle.kind": "grid"})
    assert "[oracle] over: expected the names of the hyperparameters that grid varies" in line
    (line,) = problems("digits", {"oracle.kind": "random", "oracle.over": ["kernel"]})
    assert "[oracle] over: expected with kind 'grid' only; received kind 'random'" in line
    grid = read("digits", {"oracle.kind": "grid", "oracle.over": ["kernel"]})
    assert grid.oracle.over == ["kernel"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", r"cifar: .*Did you mean cifar10, cifar10_gpu\? --list shows all sweeps"),
        ("fashion-mnist", r"Did you mean fashion_mnist\?"),
        (
            "qqq",
            r"Did you mean cifar10, cifar10_gpu, classics, digits, fashion_mnist, images, signs, "
            r"transfer\?",
        ),
        ("nowhere/own.toml", r"nowhere/own.toml: expected a sweep's TOML file; there is none"),
        ("nowhere/photos", r"expected the name of a sweep, a TOML file, or your own images"),
    ],
)
def test_an_unknown_sweep_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        read(name)
    assert "\n" not in str(caught.value)


# What the name says


def test_a_file_names_its_sweep_and_its_data_names_the_space(tmp_path: Path) -> None:
    own = read(write(tmp_path, 'data = "digits"', "second-try.toml"))
    assert (own.name, own.data, own.search_space) == ("second-try", "digits", "digits")
    named = read(write(tmp_path, 'data = "digits"\nname = "other"\nsearch_space = "images"'))
    assert (named.name, named.search_space) == ("other", "images")


@pytest.mark.parametrize("data", ["photos", "./photos", "/data/photos.npz", "photos/"])
def test_data_without_a_space_of_its_own_is_searched_as_any_images(
    tmp_path: Path, data: str
) -> None:
    # data = "./photos" used to end in a traceback of importlib's, about a relative import
    assert read(write(tmp_path, f'data = "{data}"')).search_space == "images"


@pytest.mark.parametrize("kind", ["folder", "npz", "h5"])
def test_a_users_images_are_swept_as_images_toml_says_under_their_own_name(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("my photos" if kind == "folder" else f"my photos.{kind}")
    if kind == "folder":
        path.mkdir()
    else:
        np.savez(path.with_suffix(""), x=np.zeros((1, 8, 8)), y=np.zeros(1))
        path.with_suffix(".npz").rename(path)
    own, images = read(str(path)), read("images")
    assert (own.name, own.data, own.search_space) == ("my_photos", str(path), "images")
    changed = [line.partition(":")[0] for line in differences(images.as_json(), own.as_json())]
    assert changed == ["name", "data"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("Blümchen", "Bl_mchen"), ("_new", "new"), ("(2) photos", "2__photos"), ("写真", "images")],
)
def test_a_folder_of_any_name_gives_a_sweep_a_name_that_is_safe(
    tmp_path: Path, folder: str, name: str
) -> None:
    # these folders were refused, as their names are no names of a sweep
    (tmp_path / folder).mkdir()
    assert read(str(tmp_path / folder)).name == name


def test_a_shipped_sweep_wins_over_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read("digits").data == "digits"
    assert read("./digits").search_space == "images"


# Changes by options


def test_changes_lie_on_top_of_the_file() -> None:
    plain = read("digits")
    changed = read(
        "digits",
        {"training.epochs": 3, "oracle.kind": "bayesian", "trials": 5, "space.kernel": [3, 5]},
    )
    assert differences(plain.as_json(), changed.as_json()) == [
        "trials: 30 -> 5",
        "training.epochs: 20 -> 3",
        'oracle.kind: "tpe" -> "bayesian"',
        'pruner.kind: "asha" -> "none"',
        "space.kernel: null -> [3, 5]",
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training.epoch", r"\[training\] epoch: no such key; did you mean epochs"),
        ("trainin.epochs", "trainin: no such key; did you mean training"),
        ("data.epochs", "--set data.epochs: data is not a table of digits.toml"),
        ("epochs", "epochs: no such key"),
    ],
)
def test_a_change_of_what_is_not_there_is_refused(key: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        read("digits", {key: 3})


def test_a_definition_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read("digits").trials = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"scheduler": "http://there:1"},
            r"scheduler: expected tls://HOST:PORT or tcp://HOST:PORT",
        ),
        ({"scheduler": "tls://"}, r"scheduler: expected tls://HOST:PORT"),
        ({"scheduler": "tcp://10.0.0.1:8786"}, r"expected tls:// for another machine"),
        ({"scheduler": "tcp://[2001:db8::1]:8786"}, r"expected tls:// for another machine"),
        ({"scheduler": "tls://there:1", "workers": 2}, r"workers: expected 0 with a scheduler"),
        (
            {"max_megabytes": 900, "workers": 0},
            r"max_megabytes: expected with worker processes of ours",
        ),
        ({"gpus": 1.0, "workers": 0}, r"gpus: expected with worker processes"),
        ({"workers": -1}, r"\[engine\] workers: expected greater than or equal to 0; received -1"),
        ({"worker": 1}, r"\[engine\] worker: no such key; did you mean workers"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        read("digits", {f"engine.{key}": value for key, value in table.items()})


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tls://far.away:1"])
def test_a_scheduler_here_or_with_tls_is_taken(address: str) -> None:
    assert read("digits", {"engine.scheduler": address}).engine.scheduler == address
    far = {"engine.scheduler": "tcp://10.0.0.1:1", "engine.insecure": True}
    assert read("digits", far).engine.insecure


# The digest

OTHERS: dict[str, Any] = {  # of every field another value than digits.toml's
    "name": "other",
    "data": "signs",
    "search_space": "images",
    "data_dir": "/data",
    "train_limit": 100,
    "image_size": [8, 8],
    "objective": "val_loss",
    "seed": 2,
    "trials": 99,
    "minutes": 5.0,
    "epochs_total": 7,
    "disk_megabytes": 100.0,
    "baselines": ["all"],
    "keep_models": 9,
    "training.epochs": 3,
    "training.patience": 2,
    "training.monitor": "val_accuracy",
    "training.weights": "last",
    "training.class_weights": True,
    "training.precision": "mixed_bfloat16",
    "training.checkpoint_seconds": 1.0,
    "oracle.kind": "bayesian",
    "oracle.over": ["kernel"],
    "oracle.factor": 4,
    "oracle.iterations": 2,
    "engine.workers": 2,
    "engine.scheduler": "tls://10.0.0.1:8786",
    "engine.insecure": True,
    "engine.gpus": 1.0,
    "engine.threads": 1,
    "engine.renew_after": 3,
    "engine.max_attempts": 5,
    "engine.max_minutes": 7.0,
    "engine.max_megabytes": 3000,
    "pruner.kind": "median",
    "pruner.first_epoch": 2,
    "pruner.factor": 2,
    "pruner.percentile": 50.0,
    "pruner.startup_trials": 9,
    "stop.patience": 20,
    "registry.within": 0.01,
    "registry.cost": "flops",
    "costs": ["flops"],
    "recipes": False,
    "constraints": {"parameters": "<= 500_000"},
    "final.top": 2,
    "final.seeds": 9,
    "final.baselines": ["all"],
    "space": {"kernel": 3},
}


def with_other(key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    old = read("digits").as_json()
    new = copy.deepcopy(old)
    table, _, entry = key.rpartition(".")
    (new[table] if table else new)[entry] = OTHERS[key]
    return old, new


def test_the_list_of_fields_is_complete() -> None:
    tables: dict[str, type[BaseModel]] = {"training": TrainingTable, "oracle": OracleTable}
    tables |= {"engine": EngineTable, "final": FinalTable, "stop": StopTable}
    tables |= {"pruner": PrunerTable, "registry": RegistryTable}
    fields = {name for name in Definition.model_fields if name not in tables}
    fields |= {f"{name}.{key}" for name, table in tables.items() for key in table.model_fields}
    assert set(OTHERS) == fields


@pytest.mark.parametrize("key", OTHERS)
def test_the_digest_ignores_how_long_a_sweep_runs_and_where_its_data_lies_alone(key: str) -> None:
    old, new = with_other(key)
    assert old != new
    ignored = {"trials", "minutes", "epochs_total", "disk_megabytes", "data", "data_dir"}
    ignored |= {"keep_models", "engine", "final", "stop", "recipes"}
    assert (digest(old) == digest(new)) is (key.split(".")[0] in ignored)
    assert ignored == NOT_IN_DIGEST


@pytest.mark.parametrize("key", OTHERS)
def test_differences_name_what_changed(key: str) -> None:
    old, new = with_other(key)
    (line,) = differences(old, new)
    assert line.startswith((f"{key}: ", f"{key}."))
    assert differences(old, old) == []


def test_the_digest_depends_on_values_and_not_on_their_order() -> None:
    content = read("digits").as_json()
    assert digest(dict(reversed(content.items()))) == digest(content)
    # it stands in ledgers: computed in another way, it would keep every old sweep from going on
    assert digest({"seed": 1, "trials": 3, "name": "a"}) == (
        "596e6db07df821db5f88c70f2cb544a73e7e5ba8b7f4527ea23572b26c46bfd3"
    )


# What is shipped


def test_the_shipped_sweeps_are_listed_by_name() -> None:
    assert list(shipped()) == [
        *("cifar10", "cifar10_gpu", "classics", "digits", "fashion_mnist", "images", "signs"),
        "transfer",
    ]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_sweep_is_valid_and_what_it_names_exists(name: str) -> None:
    sweep = read(name)
    assert sweep.name == name
    assert sweep.data in datasets.DATASETS or name == "images"
    assert sweep.objective in OBJECTIVES
    baselines = find_space(sweep.search_space).baselines
    assert set(sweep.baselines) <= {*baselines, "all"}


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_sweep_says_its_purpose_in_its_first_line(name: str) -> None:
    first = shipped()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert purpose(shipped()[name]) == first[2:]
    assert 20 < len(first) <= 120


# What is left to us


@pytest.mark.parametrize(
    ("changes", "oracle", "pruner", "chosen"),
    [
        ({}, "tpe", "asha", ("oracle", "pruner")),
        ({"oracle.kind": "auto", "pruner.kind": "auto"}, "tpe", "asha", ("oracle", "pruner")),
        ({"objectives": ["val_loss", "flops"]}, "tpe", "none", ("oracle", "pruner")),
        ({"training.epochs": 5}, "tpe", "none", ("oracle", "pruner")),
        ({"training.epochs": 6}, "tpe", "asha", ("oracle", "pruner")),
        ({"pruner.kind": "median"}, "tpe", "median", ("oracle",)),
        ({"oracle.over": ["kernel"]}, "grid", "none", ("oracle", "pruner")),
        ({"oracle.kind": "random"}, "random", "none", ()),
        ({"oracle.kind": "random", "pruner.kind": "auto"}, "random", "asha", ("pruner",)),
        ({"oracle.kind": "hyperband", "pruner.kind": "auto"}, "hyperband", "none", ("pruner",)),
    ],
)
def test_an_oracle_and_a_pruner_that_nobody_named_are_chosen(
    tmp_path: Path, changes: dict[str, Any], oracle: str, pruner: str, chosen: tuple[str, ...]
) -> None:
    found = read(write(tmp_path, 'data = "digits"'), changes)
    assert (found.oracle.kind, found.pruner.kind, found.chosen) == (oracle, pruner, chosen)
    again = from_record(found.as_json())
    assert (again.as_json(), again.chosen) == (found.as_json(), ())


# Pruners, costs and constraints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"oracle.kind": "hyperband", "pruner.kind": "asha"},
            "expected none with the oracle hyperband",
        ),
        (
            {"oracle.kind": "random", "objectives": ["val_accuracy", "flops"]},
            "objectives: expected one with any oracle but tpe and gp",
        ),
        (
            {"objectives": ["val_accuracy", "flops"], "pruner.kind": "median"},
            "objectives: expected one with a pruner",
        ),
        ({"objectives": ["val_accuracy", "seconds"]}, "'parameters', 'flops' or 'megabytes'"),
        ({"objectives": ["flops", "parameters"]}, "expected 'val_accuracy', 'val_loss'"),
        ({"objectives": ["val_accuracy"]}, "objectives: expected a metric and what it may cost"),
        ({"objectives": "val_accuracy"}, "objectives: expected a metric and what it may cost"),
        ({"objectives": ["val_loss", "flops"], "objective": "val_loss"}, "no `objective` beside"),
        ({"constraints": {"parameter": "<= 3"}}, "'megabytes' or 'epoch_seconds'"),
        ({"constraints": {"flops": "< 3"}}, "'<= NUMBER' or '>= NUMBER'"),
        ({"constraints": {"flops": "<= many"}}, "received '<= many'"),
        ({"constraints": {"flops": "<= -1"}}, "the number above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(
    changes: dict[str, Any], message: str
) -> None:
    [line] = problems("digits", changes)
    assert message in line
    assert line.endswith("Correct it.")


def test_objectives_are_a_metric_and_what_it_costs() -> None:
    sweep = read("digits", {"objectives": ["val_loss", "flops", "parameters"]})
    assert (sweep.objective, sweep.costs) == ("val_loss", ["flops", "parameters"])


def test_the_definition_of_an_older_ledger_gets_the_defaults_of_what_is_new() -> None:
    now = read("digits", {"oracle.kind": "random"})
    old = now.as_json()
    for name in ("pruner", "stop", "costs", "constraints", "registry"):
        del old[name]
    assert from_record(old) == now
