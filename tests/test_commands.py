"""Tests of the commands a person types: real processes, what they print where, and how they end."""

import dataclasses
import html
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest

from cnn_search import baseline, registry, sweep, training
from cnn_search.commands import parse_pair
from cnn_search.definition import purpose, shipped
from cnn_search.errors import DefinitionError
from cnn_search.surroundings import usable_cores

ROOT = Path(__file__).parents[1]
HEAVY = ["tensorflow", "keras", "keras_tuner", "mlflow", "matplotlib", "pandas", "sklearn"]

# what the tutorials print, all and trainable
PARAMETERS = {
    "cifar10/vgg_bn": (552_362, 551_466),
    "cifar10/vgg_bn_as_coded": (552_874, 551_722),
    "cifar10/one_conv": (226_390, 226_390),
    "cifar10/wide_conv": (1_628_214, 1_628_214),
    "cifar10/two_conv": (167_562, 167_562),
    "cifar10/lenet5": (62_030, 62_018),
    "signs/conv7": (170_438, 170_246),
    "fashion_mnist/one_conv": (804_554, 804_554),
    "digits/vgg_bn": (306_026, 305_130),
}


@pytest.fixture(autouse=True)
def _no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "CNN_SEARCH_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


# What answers without the heavy libraries


@pytest.mark.parametrize(
    ("command", "arguments", "code", "said"),
    [
        ("sweep", ["--help"], 0, "Search for a better network than the tutorial's."),
        ("baseline", ["--help"], 0, "Train a tutorial's model under its own protocol"),
        ("registry", ["--help"], 0, "Look at the models that sweeps registered"),
        ("registry", ["pull", "--help"], 0, "Write a champion's model"),
        ("score", ["--help"], 0, "Give the answer of a sweep"),
        ("score", ["nothing"], 2, "expected a sweep that ran; there is none called 'nothing'"),
        ("report", ["--help"], 0, "Write what a sweep found as one HTML file"),
        ("replay", ["--help"], 0, "Train a trial again, from what MLflow has of it"),
        ("init", ["--help"], 0, "Write NAME.toml, a sweep of your own images"),
        ("init", ["mine"], 2, "Missing option '--data'."),
        ("watch", ["--help"], 0, "Show a sweep's trials, best so far"),
        ("watch", [], 2, "watch: expected a sweep in mlruns/sweeps; there is none."),
        ("ui", ["--help"], 0, "Show every trial, its curves and pictures"),
        ("predict", ["--help"], 0, "Say what is seen on photos"),
        ("predict", ["cifar10"], 2, "error: Missing argument 'PHOTOS...'."),
        ("predict", ["cifar10", "none.png"], 2, "Path 'none.png' does not exist."),
        ("serve", ["--help"], 0, "Answer requests on this machine"),
        ("export", ["--help"], 0, "Write a champion as a TensorFlow SavedModel"),
        ("export", ["cifar10"], 2, "Missing option '--format'. Choose from"),
        ("doctor", ["--help"], 0, "Say where a sweep's ledger, MLflow and files disagree"),
        ("doctor", ["nothing"], 2, "doctor: expected a folder of sweeps; there is no mlruns."),
        ("doctor", ["digitz", "--mlruns", "."], 2, "there is none called 'digitz' in ."),
        ("sweep", ["--list"], 0, "Handwritten digits"),
        ("sweep", ["--list", "--json"], 0, '"digits": "Handwritten digits'),
        ("sweep", ["digits", "--trails", "3"], 2, "error: No such option '--trails'"),
        ("sweep", ["digits", "--trials", "many"], 2, "error: Invalid value for '--trials'"),
        ("sweep", ["digits", "--oracle", "bayes"], 2, "expected 'random', 'grid', 'bayesian'"),
        ("sweep", ["digits", "--set", "trials"], 2, "expected name=value; received 'trials'"),
        ("sweep", ["broken.toml"], 2, "error: broken.toml: expected a TOML file"),
        ("sweep", ["digitz"], 2, "Did you mean digits?"),
        ("baseline", ["digitz"], 2, "error: digitz: expected the name of a sweep"),
        ("registry", [], 2, "error: Missing command."),
        ("registry", ["show"], 2, "error: Missing argument 'NAME'."),
    ],
)
def test_what_needs_no_training_imports_nothing_heavy(
    tmp_path: Path, command: str, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "broken.toml").write_text("data = ")
    program = textwrap.dedent(
        f"""
        import os, runpy, sys
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv = ["cnn_search", *{arguments!r}]
        os.chdir({str(tmp_path)!r})
        code = None
        try:
            runpy.run_module("cnn_search.{command}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
        print("END", code, sorted(set({HEAVY!r}) & set(sys.modules)))
        """
    )
    done = python("-c", program)
    assert done.stdout.splitlines()[-1] == f"END {code} []"
    assert said in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr
    if code:
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
    else:
        assert done.stderr == ""


def test_cnn_search_lists_its_commands_and_runs_them() -> None:
    listed = python("-m", "cnn_search")
    assert (listed.returncode, listed.stdout) == (0, "")
    for command in ("sweep", "baseline", "registry", "doctor"):
        assert f"cnn-search {command}" in listed.stderr
    assert python("-m", "cnn_search", "--help").returncode == 0
    assert python("-m", "cnn_search", "sweeps").returncode == 2
    swept = python("-m", "cnn_search", "sweep", "--list")
    assert (swept.returncode, swept.stderr) == (0, "")
    assert swept.stdout == python("-m", "cnn_search.sweep", "--list").stdout

    missing = python("-m", "cnn_search", "sweep")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: Missing argument NAME; --list shows the sweeps.")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sw"], ["plain,sweep"]),
        (["sweep", "cif"], ["plain,cifar10", "plain,cifar10_gpu"]),
        (["sweep", "photos/"], ["file,photos/"]),
        (["registry", "pu"], ["plain,pull"]),
        (["predict", "--to"], ["plain,--top"]),
    ],
)
def test_a_shell_is_offered_commands_sweeps_and_options(
    typed: list[str], offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_CNN_SEARCH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["cnn-search", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    assert python("-m", "cnn_search").stdout.split() == offered


def test_list_shows_each_sweep_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main.main(["--list", "--json"], standalone_mode=False)
    listed = json.loads(capsys.readouterr().out)
    assert listed == {name: purpose(file) for name, file in shipped().items()}


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("training.epochs=3", ("training.epochs", 3)),
        ("learning_rate=1e-3", ("learning_rate", 0.001)),
        ("flip=true", ("flip", True)),
        ("space.kernel=[3, 5]", ("space.kernel", [3, 5])),
        ("head=average", ("head", "average")),
        ('head="average"', ("head", "average")),
        ("data=./my=photos", ("data", "./my=photos")),
        ("name=", ("name", "")),
    ],
)
def test_a_value_is_read_as_toml_and_else_as_a_text(text: str, pair: tuple[str, Any]) -> None:
    assert parse_pair(text, "--set") == pair


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_a_pair_without_name_or_equals_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="--try: expected name=value; received"):
        parse_pair(text, "--try")


def test_usable_cores_are_those_of_this_process() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("where", ["--oracle", "--set", "file"])
def test_hyperband_has_its_own_number_of_trials(tmp_path: Path, where: str) -> None:
    # --trials was refused beside --oracle hyperband, and ignored if the TOML file chose hyperband
    file = tmp_path / "own.toml"
    kind = "hyperband" if where == "file" else "random"
    file.write_text(f'data = "digits"\n[oracle]\nkind = "{kind}"\n')
    options = {"--oracle": ["--oracle=hyperband"], "--set": ["--set=oracle.kind=hyperband"]}
    arguments = [str(file), "--trials=5", f"--mlruns={tmp_path}", *options.get(where, [])]
    with pytest.raises(click.UsageError, match="--trials: expected to be left out with hyperband"):
        sweep.main.main(arguments, standalone_mode=False)


def test_an_empty_registry_says_how_to_fill_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    registry.main.main(["list"], standalone_mode=False)
    assert "No model is registered yet. Run `python -m cnn_search.sweep" in capsys.readouterr().out
    registry.main.main(["list", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == []


# One real sweep, each step of it as a person would type it

SWEEP = "digits --epochs 1 --train-limit 300 --threads 1 --workers 0 --no-final".split()


class Sweep:
    """A folder with a sweep of two trials, and what the command said."""

    def __init__(self, mlruns: Path) -> None:
        self.mlruns = mlruns
        self.first = self.run("--trials", "2", "--json")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = [*SWEEP, "--mlruns", str(self.mlruns), *arguments]
        return python("-m", "cnn_search.sweep", *options)

    def ledger(self) -> list[dict[str, Any]]:
        (path,) = self.mlruns.glob("sweeps/digits-*/ledger.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def asked(self) -> list[str]:
        return [event["source"] for event in self.ledger() if event["kind"] == "ask"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        yield Sweep(tmp_path_factory.mktemp("swept") / "mlruns")


@pytest.mark.slow
def test_a_sweep_prints_its_result_on_stdout_and_its_progress_on_stderr(swept: Sweep) -> None:
    assert swept.first.returncode == 0, swept.first.stderr
    result = json.loads(swept.first.stdout)
    assert result["ended"] == "finished"
    assert result["trials"] == {"finished": 2}
    assert result["epochs"] == 2
    assert result["baseline"]["baseline"] == "vgg_bn"
    assert result["baseline"]["parameters"] == 306_026
    assert {row["trial"] for row in result["best"]} == {0, 1}
    assert result["champion"] == result["best"][0]["trial"]
    said = swept.first.stderr
    assert "digits: 240 training and 60 validation images of 8x8x1, 10 classes" in said
    assert "trial 0 (1 of 2) (baseline vgg_bn): the tutorial's model" in said
    assert "trial 1 (2 of 2) (recipe fast): val_accuracy " in said
    assert "Traceback" not in said
    assert (swept.mlruns / "mlflow.db").is_file()


@pytest.mark.slow
def test_the_same_command_again_prints_the_answer_without_training(swept: Sweep) -> None:
    before = swept.ledger()
    again = swept.run("--trials", "2")
    assert again.returncode == 0
    assert "This sweep was finished. To extend it: the same with a larger --trials." in again.stdout
    assert "baseline vgg_bn" in again.stdout
    assert "as a version of models:/digits" in again.stdout
    assert "trial " not in again.stderr
    assert swept.ledger() == before


@pytest.mark.slow
def test_a_larger_number_of_trials_extends_a_sweep(swept: Sweep) -> None:
    before = swept.ledger()
    extended = swept.run("--trials", "3", "--json")
    assert extended.returncode == 0
    assert json.loads(extended.stdout)["trials"] == {"finished": 3}
    assert "trial 2 (3 of 3)" in extended.stderr
    assert "trial 1 (2 of 3)" not in extended.stderr
    assert swept.ledger()[: len(before)] == before


@pytest.mark.slow
def test_try_adds_a_configuration_of_the_users_own(swept: Sweep) -> None:
    asked = swept.asked()
    tried = swept.run("--trials", "2", "--try", "filters_2=16 filters_1=8 learning_rate=5e-3")
    assert tried.returncode == 0
    assert swept.asked() == [*asked, "try"]
    values = [event["values"] for event in swept.ledger() if event["kind"] == "ask"]
    changed = {name: new for name, new in values[-1].items() if values[0][name] != new}
    assert changed == {"filters_2": 16, "filters_1": 8, "learning_rate": 0.005}
    assert "learning_rate 0.005" in tried.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("kernel=4", "--try kernel=4: expected 3. Correct it."),
        ("learning_rate=7", "--try learning_rate=7: expected 0.0003 to 0.01. Correct it."),
        ("kernels=3", "--try kernels=3: expected a hyperparameter of the space (depth, "),
        ("momentum=0.9", "expected nothing: with the other values momentum has no effect."),
    ],
)
def test_a_wrong_try_is_answered_with_what_is_allowed(
    swept: Sweep, value: str, message: str
) -> None:
    before = swept.ledger()
    if value == "kernel=4":  # the exit code, once; the rest is quicker in this process
        tried = swept.run("--trials", "2", "--try", value)
        assert (tried.returncode, tried.stdout) == (2, "")
        assert tried.stderr.splitlines()[-1] == f"error: {message}"
    else:
        options = [*SWEEP, "--trials", "2", "--mlruns", str(swept.mlruns), "--try", value]
        with pytest.raises(DefinitionError) as caught:
            sweep.main.main(options, standalone_mode=False)
        assert message in str(caught.value)
    assert swept.ledger() == before


@pytest.mark.slow
def test_the_champion_is_listed_shown_and_pulled(
    swept: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept.first.returncode == 0
    mlruns = ["--mlruns", str(swept.mlruns)]
    registry.main.main(["list", "--json", *mlruns], standalone_mode=False)
    (model,) = json.loads(capsys.readouterr().out)
    assert model["name"] == "digits"
    registry.main.main(["show", "digits", *mlruns], standalone_mode=False)
    assert "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in capsys.readouterr().out
    registry.main.main(["pull", "digits", "--to", str(tmp_path), *mlruns], standalone_mode=False)
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert tmp_path / "digits.keras" in paths
    assert all(path.is_file() for path in paths)


# A sweep that ends with its answer

SCORED = """# A small sweep that is scored
data = "digits"
train_limit = 200
trials = 2

[training]
epochs = 2

[final]
top = 1
seeds = 2

[space]
depth = 1
convolutions = 1
filters_1 = [8, 16]
"""


@pytest.mark.slow
def test_a_sweep_ends_with_its_answer_a_report_and_a_scored_champion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, mlruns = tmp_path / "small.toml", ["--mlruns", str(tmp_path / "mlruns")]
    file.write_text(SCORED)
    swept = python("-m", "cnn_search.sweep", str(file), "--threads", "1", "--workers", "0", *mlruns)
    assert swept.returncode == 0, swept.stderr
    assert "final scoring: vgg_bn, trial 1; 2 seeds each of 2 epochs" in swept.stderr
    assert "Trained anew, scored on the test part" in swept.stdout
    again = python("-m", "cnn_search.score", "small", "--json", *mlruns)
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert answer["state"] == "scored"
    assert "final 0" not in again.stderr
    (page,) = tmp_path.glob("mlruns/sweeps/small-*/report.html")
    assert str(page) in swept.stdout
    assert answer["sentence"] in html.unescape(page.read_text())
    registry.main.main(["show", "small", "--json", *mlruns], standalone_mode=False)
    model = json.loads(capsys.readouterr().out)
    assert model["evidence"] == "test"
    registry.main.main(["history", "small", "--json", *mlruns], standalone_mode=False)
    assert "validation scores alone" in capsys.readouterr().out


@pytest.mark.slow
def test_an_unknown_baseline_of_the_final_table_is_refused_before_the_search(
    tmp_path: Path,
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SCORED.replace("seeds = 2", 'seeds = 2\nbaselines = ["vgg"]'))
    with pytest.raises(DefinitionError, match="expected some of vgg_bn; received 'vgg'"):
        sweep.main.main([str(file), "--mlruns", str(tmp_path / "mlruns")], standalone_mode=False)
    assert not (tmp_path / "mlruns").exists()


# The baseline command


def test_every_baseline_has_the_parameters_that_its_tutorial_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    baseline.main.main(["--list", "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    recipes = [row for row in rows if not row["tutorial"]]
    assert [(row["data"], row["baseline"]) for row in recipes] == [
        ("cifar10", "small"),
        ("cifar10", "fast"),
        ("digits", "fast"),
        ("fashion_mnist", "fast"),
        ("signs", "fast"),
    ]
    rows = [row for row in rows if row["tutorial"]]
    found = {
        f"{row['data']}/{row['baseline']}": (row["parameters"], row["trainable"]) for row in rows
    }
    assert found == PARAMETERS
    firsts = {row["data"]: row["baseline"] for row in reversed(rows)}
    assert firsts == {
        "cifar10": "vgg_bn",
        "digits": "vgg_bn",
        "fashion_mnist": "one_conv",
        "signs": "conv7",
    }


@pytest.mark.parametrize("options", [(), ("--precision", "mixed_bfloat16")])
def test_a_baseline_trains_in_the_precision_that_is_asked_for(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def train(task: Any, setup: Any, *_: Any) -> None:
        asked.append(setup.precision)
        raise AssertionError("far enough")

    monkeypatch.setattr(training, "train", train)
    command = [
        "digits",
        *"--epochs 1 --train-limit 300 --threads 1 --mlruns".split(),
        str(tmp_path),
    ]
    with pytest.raises(AssertionError, match="far enough"):
        baseline.main.main([*command, *options], standalone_mode=False)
    assert asked == [options[-1] if options else "float32"]


def raising(message: str) -> Callable[..., None]:
    def train(*arguments: Any) -> None:
        raise AssertionError(message)

    return train


def test_a_baseline_is_tested_once_with_its_last_and_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["digits", *"--epochs 1 --train-limit 300 --threads 1 --mlruns".split()]
    command.append(str(tmp_path))
    baseline.main.main(command, standalone_mode=False)
    first = capsys.readouterr()
    assert "epoch 1/1" in first.err
    assert "digits/vgg_bn: 306,026 parameters, 1 epochs" in first.out
    assert "trained on 270 images, validated on 30, tested once on 359" in first.out
    for weights in ("last", "best"):
        assert f"test, {weights} weights: accuracy " in first.out
    assert "may differ by the epochs: 1 instead of 50" in first.out

    monkeypatch.setattr(training, "train", raising("the result is on record"))
    baseline.main.main(command, standalone_mode=False)
    assert capsys.readouterr() == (first.out, "")
    baseline.main.main([*command, "--json"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert set(result["test"]) == {"last weights", "best weights"}
    with pytest.raises(AssertionError, match="the result is on record"):
        baseline.main.main([*command, "--new"], standalone_mode=False)


def test_a_recipe_is_trained_on_all_images_and_compared_with_no_tutorial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = training.find_space("digits")
    recipe = dataclasses.replace(
        space.baselines["vgg_bn"].configuration, training=training.TrainingConfig("rmsprop")
    )
    monkeypatch.setattr(space, "recipes", {"other": recipe})
    command = ["digits", *"--which other --epochs 1 --train-limit 300 --threads 1 --mlruns".split()]
    baseline.main.main([*command, str(tmp_path)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "digits/other: 306,026 parameters, 1 epochs" in said
    assert "trained on 300 images, validated on 0, tested once on 359" in said
    assert "test, last weights: accuracy " in said
    assert not re.search("tutorial|differ|best weights", said)
    # another recipe of that name is another training
    changed = dataclasses.replace(recipe, training=training.TrainingConfig("sgd"))
    for known, message in ((recipe, None), (changed, "the result is on record")):
        monkeypatch.setattr(space, "recipes", {"other": known})
        with monkeypatch.context() as patch:
            patch.setattr(training, "train", raising("the result is on record"))
            with pytest.raises(AssertionError, match=message) if message else nullcontext():
                baseline.main.main([*command, str(tmp_path)], standalone_mode=False)


def test_a_baseline_of_ones_own_sweep_and_with_a_change_is_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[training.Task, training.Setup]] = []

    def train(task: training.Task, setup: training.Setup, *others: Any) -> None:
        asked.append((task, setup))
        raise RuntimeError("not trained")

    monkeypatch.setattr(training, "train", train)
    file = tmp_path / "mine.toml"
    file.write_text('data = "digits"\n[training]\nprecision = "mixed_bfloat16"\n')
    one = ["--threads", "1", "--train-limit", "300", "--mlruns", str(tmp_path)]
    for arguments in (["digits"], ["digits", "--try", "batch_size=32 flip=false"], [str(file)]):
        with pytest.raises(RuntimeError, match="not trained"):
            baseline.main.main([*arguments, *one], standalone_mode=False)
    (plain, setup), (changed, other), (own, mine) = asked
    assert {k: (plain.values[k], v) for k, v in changed.values.items() if plain.values[k] != v} == {
        "batch_size": (64, 32)
    }
    assert own.values == plain.values
    assert (setup.precision, mine.precision) == ("float32", "mixed_bfloat16")
    assert len({setup.folder, other.folder, mine.folder}) == 3
    assert mine.folder.name.startswith("mine-vgg_bn-50-1-")
    before = set((tmp_path / "baselines").iterdir())
    with pytest.raises(DefinitionError, match="--try units=3: expected a hyperparameter of the sp"):
        baseline.main.main(["digits", "--try", "units=3", *one], standalone_mode=False)
    assert set((tmp_path / "baselines").iterdir()) == before


def test_an_unknown_baseline_is_answered_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('data = "digits"\nsearch_space = "classics"\n')
    for name, there in (
        ("digits", "vgg_bn, fast"),
        (str(file), "lenet5, alexnet, vgg16, googlenet"),
    ):
        command = [name, "--which", "conv7", "--train-limit", "300", "--mlruns", str(tmp_path)]
        with pytest.raises(DefinitionError, match=f"expected one of {there}; received 'conv7'"):
            baseline.main.main(command, standalone_mode=False)
    assert list(tmp_path.iterdir()) == [file]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cifar10", "--dry-run", "--epochs", "9", "--mlruns", str(tmp_path / "mlruns")]
    sweep.main.main(arguments, standalone_mode=False)
    said = capsys.readouterr().out
    assert "at most 60 trials and 540 epochs in all" in said
    assert "trains in 1 worker process here" in said
    options = "--workers 2 --epochs-total 50 --disk-quota 900".split()
    sweep.main.main([*arguments, *options], standalone_mode=False)
    said = capsys.readouterr().out
    assert "trains in 2 worker processes here" in said
    assert "ends after epoch 50 of all trials together" in said
    assert "ends when its folder has more than 900 MB" in said
    sweep.main.main([*arguments, "--oracle", "hyperband"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "9 trials from epoch 0 to 1, 3 trials from epoch 1 to 3" in said
    assert "24 trials and 84 epochs in all" in said
    assert not (tmp_path / "mlruns").exists()


def test_a_dry_run_with_a_probe_measures_each_size_and_counts_the_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["digits", "--dry-run", "--probe", "--train-limit=300", "--threads=1"]
    arguments += ["--oracle=grid", '--set=oracle.over=["filters_1"]', "--trials=30"]
    sweep.main.main([*arguments, f"--mlruns={tmp_path / 'mlruns'}"], standalone_mode=False)
    said = capsys.readouterr().out
    for size in ("vgg_bn", "network 1", "network 5"):
        assert re.search(
            rf"^{size}: [\d,]+ parameters, [\d,]+ FLOPs an image; [\d.]+ s", said, re.M
        )
    assert re.search(r"^each is predicted from the others within \d+%, by the median$", said, re.M)
    assert re.search(r"^the search: about \d+ \w+ here, if no trial ends early$", said, re.M)
    assert re.search(r"^the final scoring: about \d+ \w+$", said, re.M)
    assert re.search(r"^on the disk: about \d+ MB$", said, re.M)
    assert said.splitlines()[-1] == "note: the space has 5 points, fewer than the 30 trials"
    assert not (tmp_path / "mlruns").exists()
    with pytest.raises(click.UsageError, match="--probe: expected together with --dry-run"):
        sweep.main.main(["digits", "--probe"], standalone_mode=False)
