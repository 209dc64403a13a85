"""The report: every state of a sweep gives a clear page, and nothing in it comes from elsewhere."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from cnn_search.answer import answer
from cnn_search.definition import Definition
from cnn_search.errors import LedgerError
from cnn_search.ledger import Ledger, pack_bits, read_record
from cnn_search.report import __main__ as command
from cnn_search.report import analysis, claims, comparison, importance, page

ROOT = Path(__file__).parents[1]
EPOCHS, SEEDS, TEST_IMAGES = 3, 3, 60
HOSTILE = "</script><script>document.title='hacked'</script>"
CLASSES = [HOSTILE, "T-shirt/top", "a|b_c*", "<img src=http://evil.example/x.png>", "$1 bill", "6"]
SURROUNDINGS = {
    "versions": {"python": "3.11.7", "keras": "3.15.1"},
    "machine": {"system": "Linux", "processor": "AMD EPYC", "cores": 2},
    "git": {"commit": "abc123", "dirty": False},
    "pid": 1,
}
BASELINE = {"depth": 2, "filters_1": 32, "filters_2": 64, "pooling_1": "max", "pooling_2": "max"}
BASELINE |= {"dropout_1": 0.2, "dropout_2": 0.3, "head_dropout": 0.5, "optimiser": "adam"}
BASELINE |= {"learning_rate": 1e-3, "kernel": 3}


def begin(
    path: Path, *, objective: str = "val_accuracy", oracle: str = "random", **tables: Any
) -> Ledger:
    """Return an open ledger with its first two lines."""
    table = {"name": "digits", "data": "digits", "search_space": "digits", "objective": objective}
    table |= {"training": {"epochs": EPOCHS}, "oracle": {"kind": oracle}}
    definition = Definition.model_validate({**table, **tables})
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(path)
    ledger.open()
    ledger.append(
        "sweep",
        sweep="digits-20260101-000000",
        definition=definition.as_json(),
        digest="0" * 64,
        direction="min" if objective == "val_loss" else "max",
        data={"name": "digits", "source": "made up", "digest": "1" * 64}
        | {"class_names": CLASSES, "input_shape": [8, 8, 1]}
        | {"train_images": 1000, "validation_images": 250},
    )
    ledger.append("session", **SURROUNDINGS, command="sweep.py digits")
    return ledger


def draw(number: int) -> dict[str, Any]:
    """Return the values of a trial that an oracle chose."""
    rng = np.random.default_rng(number)
    depth = int(rng.integers(1, 4))
    values: dict[str, Any] = {"depth": depth}
    for block in range(1, depth + 1):
        values[f"filters_{block}"] = int(rng.choice([16, 32, 64]))
        values[f"pooling_{block}"] = str(rng.choice(["max", "average"]))
        values[f"dropout_{block}"] = float(rng.choice([0.0, 0.2]))
    values |= {"head_dropout": 0.5, "optimiser": str(rng.choice(["adam", "sgd"])), "kernel": 3}
    rate = "learning_rate" if values["optimiser"] == "adam" else "sgd_learning_rate"
    return values | {rate: float(10 ** rng.uniform(-4, -2))}


def train(
    ledger: Ledger, key: dict[str, int], score: float, epochs: int = EPOCHS, trained: int = 0
) -> None:
    """Write a training that finishes, or goes on from where another has trained."""
    ledger.append("start", **key, attempt=1, backend="tensorflow", threads=2)
    minimise = ledger.record.header["direction"] == "min"
    metrics: dict[str, float] = {}
    for epoch in range(trained + 1, epochs + 1):
        part = epoch / epochs
        metrics = {"val_accuracy": score * part, "val_loss": 2 - score * part}
        ledger.append("epoch", **key, attempt=1, epoch=epoch, metrics=metrics, seconds=1.5)
    ledger.append(
        "done",
        **key,
        attempt=1,
        score=metrics["val_loss"] if minimise else score,
        metrics=metrics,
        best_epoch=epochs,
        epochs=epochs,
        parameters=10_000 + 100 * sum(key.values()),
        trainable_parameters=10_000,
        flops=2_000_000 + 1000 * sum(key.values()),
        model_bytes=50_000,
        blocks_dropped=0,
    )


def ask(
    ledger: Ledger, number: int, epochs: int = EPOCHS, parent: int | None = None, **values: Any
) -> dict[str, int]:
    """Write an ask; trial 0 is the baseline. Return the trial's key."""
    ledger.append(
        "ask",
        trial=number,
        values={**(draw(number) if number else BASELINE), **values},
        seed=number + 1,
        epochs=epochs,
        parent=parent,
        source="oracle" if number else "baseline",
        baseline="" if number else "vgg_bn",
        oracle={},
    )
    return {"trial": number}


def fail(ledger: Ledger, key: dict[str, int]) -> None:
    """Write a training that fails with a hostile message."""
    ledger.append("start", **key, attempt=1, backend="tensorflow", threads=2)
    told = {"reason": "error", "message": f"boom {HOSTILE} | `x` \ud800", "traceback": "..."}
    ledger.append("failed", **key, attempt=1, **told)


def search(ledger: Ledger, trials: int) -> None:
    """Write a search to its end; deeper networks are better, the fourth trial fails."""
    for number in range(trials):
        key = ask(ledger, number)
        if number == 3:
            fail(ledger, key)
        else:
            rng = np.random.default_rng(100 + number)
            depth = ledger.record.trials[number].values["depth"]
            train(ledger, key, 0.6 + 0.08 * depth + 0.03 * float(rng.random()))
    ledger.append("end", reason="finished")


def plan(ledger: Ledger) -> list[dict[str, Any]]:
    """Write the plan of a final scoring of the baseline and the best two."""
    ledger.append("session", **SURROUNDINGS, command="score.py digits", job="final")
    best = [trial for trial in ledger.record.ranking() if trial.number][:2]
    finalists = [{"name": "vgg_bn", "trial": 0, "baseline": "vgg_bn", "values": BASELINE}]
    finalists += [
        {"name": f"trial {t.number}", "trial": t.number, "baseline": "", "values": t.values}
        for t in best
    ]
    told = {"seeds": SEEDS, "epochs": EPOCHS, "test_digest": "2" * 64}
    ledger.append("plan", finalists=finalists, test_images=TEST_IMAGES, **told)
    return finalists


def retrain(ledger: Ledger, number: int, finalist: dict[str, Any]) -> dict[str, int]:
    """Write that a finalist is trained anew."""
    told = {"finalist": finalist["name"], "values": finalist["values"]}
    ledger.append("retrain", final=number, **told, seed=900 + number, epochs=EPOCHS)
    return {"final": number}


def score(
    ledger: Ledger, *, winner: int = 1, gain: float = 0.2, lost: str = "", left: int = 0
) -> None:
    """Write a final scoring in which the finalist `winner` is right by `gain` more often.

    Of the finalist `lost` all seeds fail but `left`.
    """
    finalists = plan(ledger)
    for number in range(SEEDS * len(finalists)):
        finalist = finalists[number % len(finalists)]
        key = retrain(ledger, number, finalist)
        if finalist["name"] == lost and number >= left * len(finalists):
            fail(ledger, key)
            continue
        wins = number % len(finalists) == winner
        train(ledger, key, 0.9 if wins else 0.7)
        book = finalist["baseline"] != ""
        for weights in ("best", "last") if book else ("best",):
            write_test(ledger, number, weights, 0.7 + (gain if wins else 0.0))
    ledger.append("scored", winner=finalists[winner]["name"], final=winner)
    ledger.append("end", reason="finished")


def write_test(ledger: Ledger, number: int, weights: str, rate: float) -> None:
    """Write a test event."""
    rng = np.random.default_rng(number)
    labels = np.arange(TEST_IMAGES) % len(CLASSES)
    correct = rng.random(TEST_IMAGES) < rate
    predicted = np.where(correct, labels, (labels + 1) % len(CLASSES))
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (labels, predicted), 1)
    right = int(correct.sum())
    bins = [[0, 0.0, 0]] * 13 + [[20, 18.0, min(right, 20)], [40, 39.0, max(right - 20, 0)]]
    ledger.append(
        "test",
        final=number,
        weights=weights,
        accuracy=float(correct.mean()),
        loss=0.5,
        correct=pack_bits(correct),
        confusion=confusion.tolist(),
        calibration=bins,
        batch_seconds=1e-5,
        image_seconds=1e-3,
    )


def scored(path: Path, **options: Any) -> Path:
    """Return the ledger of a scored sweep of 12 trials."""
    ledger = begin(path)
    search(ledger, 12)
    score(ledger, **options)
    ledger.close()
    return path


@pytest.fixture(scope="module")
def ledger_path(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("scored") / "ledger.jsonl")


@pytest.fixture(scope="module")
def made(ledger_path):
    return page.make(ledger_path)


@pytest.fixture(scope="module")
def written(ledger_path, made):
    return page.save(made, ledger_path.with_name("report.html"))


STATES = {}


def state(function):
    """Make the function, which writes a ledger's rest, one of the states."""
    STATES[function.__name__] = function
    return function


@state
def just_begun(path):
    return begin(path)


@state
def running(path):
    ledger = begin(path)
    key = ask(ledger, 0)
    ledger.append("start", **key, attempt=1, backend="tensorflow", threads=2)
    metrics = {"val_accuracy": 0.5, "val_loss": 1.0}
    ledger.append("epoch", **key, attempt=1, epoch=1, metrics=metrics, seconds=1.0)
    return ledger


@state
def only_failures(path):
    ledger = begin(path)
    fail(ledger, ask(ledger, 0))
    ledger.append("end", reason="failed")
    return ledger


@state
def one_finished(path):
    ledger = begin(path)
    search(ledger, 1)
    return ledger


@state
def baseline_failed(path):
    ledger = begin(path)
    fail(ledger, ask(ledger, 0))
    train(ledger, ask(ledger, 1), 0.8)
    return ledger


@state
def searched(path):
    ledger = begin(path)
    search(ledger, 12)
    return ledger


@state
def equal_scores(path):
    ledger = begin(path)
    for number in range(24):
        train(ledger, ask(ledger, number), 0.5)
    return ledger


@state
def interrupted(path):
    ledger = begin(path)
    train(ledger, ask(ledger, 0), 0.7)
    key = ask(ledger, 1)
    ledger.append("start", **key, attempt=1, backend="tensorflow", threads=2)
    ledger.append("stop", **key, attempt=1, reason="interrupted")
    ledger.append("stopped", **key, attempt=1)
    ledger.append("end", reason="interrupted")
    return ledger


@state
def minimised(path):
    ledger = begin(path, objective="val_loss")
    search(ledger, 26)
    score(ledger)
    return ledger


@state
def hyperband(path):
    ledger = begin(path, oracle="hyperband")
    train(ledger, ask(ledger, 0), 0.7)
    for number in range(1, 7):
        train(ledger, ask(ledger, number, epochs=1), 0.95, epochs=1)
    train(ledger, ask(ledger, 7), 0.8)
    ledger.append("end", reason="exhausted")
    return ledger


@state
def scoring(path):
    ledger = begin(path)
    search(ledger, 12)
    train(ledger, retrain(ledger, 0, plan(ledger)[0]), 0.8)
    return ledger


@state
def scored_and_undecided(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger, gain=0.02)
    return ledger


@state
def baseline_wins(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger, winner=0)
    return ledger


@state
def baseline_alone_is_scored(path):
    ledger = begin(path)
    search(ledger, 1)
    score(ledger, winner=0)
    return ledger


@state
def a_finalist_failed(path):
    ledger = begin(path)
    search(ledger, 12)
    best = ledger.record.ranking()[1].number
    score(ledger, winner=1, lost=f"trial {best}")
    return ledger


@state
def the_book_s_seeds_failed(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger, lost="vgg_bn")
    return ledger


@state
def one_of_the_book_s_seeds_is_left(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger, gain=0.02, lost="vgg_bn", left=1)
    return ledger


@state
def the_baseline_breaks_the_constraints(path):
    ledger = begin(path, constraints={"parameters": ">= 10_100"})
    search(ledger, 12)
    return ledger


@state
def a_depth_and_filters_in_words(path):
    ledger = begin(path)
    train(ledger, ask(ledger, 0), 0.7)
    for number in range(1, 14):
        train(ledger, ask(ledger, number, depth="deep" if number % 2 else 2, filters_1="few"), 0.6)
    ledger.append("end", reason="finished")
    return ledger


@state
def taken_apart(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger)
    best = ledger.record.plans[-1]["finalists"][1]
    told = {"book": "vgg_bn", "winner": best["name"], "changes": ["filters", "depth"]}
    alone = {"filters": {**BASELINE, "filters_1": 8}, "depth": best["values"]}
    path_ = [{**BASELINE, "filters_1": 8}, best["values"]]
    ledger.append("session", **SURROUNDINGS, command="ablation.py digits", job="final")
    ledger.append("ablation", **told, seeds=2, alone=alone, order=["depth", "filters"], path=path_)
    ledger.append("end", reason="finished")
    return ledger


@state
def goes_on_after_scoring(path):
    ledger = begin(path)
    search(ledger, 12)
    score(ledger)
    ledger.append("session", **SURROUNDINGS, command="sweep.py digits --trials 13")
    ask(ledger, 12)
    return ledger


class Document(HTMLParser):
    """What tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.tables, self.figures, self.ids = 0, 0, []
        self.text = ""
        self._skips = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in found:
                self.links.append(found[name])
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "script":
            self.scripts.append(found)
        self.tables += tag == "table"
        self.figures += "plot" in (found.get("class") or "").split()
        self._skips = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skips = False

    def handle_data(self, data):
        if not self._skips:
            self.text += data


def figures_of(html: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    return json.loads(found[1]) if found else []


@pytest.mark.parametrize("name", STATES)
def test_every_state_gives_a_clear_page(tmp_path, name):
    path = tmp_path / "ledger.jsonl"
    STATES[name](path).close()
    target = page.write(path, tmp_path / "report.html")
    html = target.read_text()
    document = Document(html)
    record = read_record(path)
    sentence = answer(record)["sentence"]
    assert " ".join(sentence.split()) in " ".join(document.text.split())
    unfinished = name in ("just_begun", "running", "interrupted", "scoring", "baseline_failed")
    unfinished |= name in ("equal_scores", "goes_on_after_scoring")
    assert ("Unfinished." in document.text) == unfinished
    assert ("Unfinished." in target.with_suffix(".md").read_text()) == unfinished
    assert len(document.ids) == len(set(document.ids))
    drawn = [figure["name"] for figure in figures_of(html)]
    assert set(drawn) <= set(document.ids)
    assert len(drawn) == document.figures
    # each figure's table, and those of the setting and the sessions
    assert document.tables >= document.figures + 2
    assert "None" not in re.sub("“None”", "", document.text)
    assert not re.search(r"\bnan\b|\binf\b", document.text.replace("became nan", ""))
    twin = json.loads(target.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert twin["answer"] == json.loads(json.dumps(answer(record)))


def test_a_winner_without_a_baseline_stands_in_its_own_column(tmp_path):
    STATES["the_book_s_seeds_failed"](tmp_path / "ledger.jsonl").close()
    made = page.make(tmp_path / "ledger.jsonl")
    winner = next(
        r for r in made.twin["answer"]["rows"] if r["name"] == made.twin["answer"]["winner"]
    )
    assert f"|  | no baseline finished | best: {winner['name']} | ratio |" in made.markdown
    accuracy = f"{100 * winner['accuracy']['mean']:.2f}"
    assert f"| test accuracy, % |  | {accuracy} |  |" in made.markdown
    assert "All 3 seeds of the book's model failed" in made.markdown


def test_what_can_not_be_shown_is_one_line(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(LedgerError, match="expected the ledger of a sweep that began"):
        page.make(empty)
    strange = tmp_path / "strange.jsonl"
    strange.write_text("not a ledger\nat all\n")
    with pytest.raises(LedgerError, match="damaged"):
        page.make(strange)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(LedgerError):
        page.make(binary)
    with pytest.raises(LedgerError, match="expected the ledger of a sweep; received No such file"):
        page.make(tmp_path / "none.jsonl")
    with pytest.raises(LedgerError, match="expected the ledger of a sweep; received Is a dir"):
        page.make(tmp_path)


def test_nothing_from_outside_is_markup(made):
    assert "<script>document.title" not in made.html
    assert "&lt;script&gt;document.title" in made.html
    assert "<img src=http" not in made.html
    document = Document(made.html)
    # the figures' data, plotly and our own
    types = [script.get("type") for script in document.scripts]
    assert types == ["application/json", "text/plain", None]
    assert made.html.count("</script>") == 3
    assert HOSTILE in document.text
    assert "<script>" not in made.markdown
    assert "<img" not in made.markdown
    assert r"a\|b_c\*" in made.markdown
    assert f"boom {HOSTILE} | `x` \ud800" in [row["message"] for row in made.twin["failures"]]
    ticks = next(f for f in figures_of(made.html) if f["name"] == "figure-confusion")
    assert not any("<" in text for text in ticks["layout"]["xaxis"]["ticktext"])


def test_hostile_names_of_hyperparameters_are_shown_as_they_are(tmp_path):
    ledger = begin(tmp_path / "ledger.jsonl")
    for number in range(6):
        values = {"<b>x</b>": number % 2, "y": f"<i>{number % 3}</i>"}
        told = {"trial": number, "values": values, "seed": 1, "epochs": EPOCHS, "parent": None}
        ledger.append("ask", **told, source="oracle", baseline="", oracle={})
        train(ledger, {"trial": number}, 0.5 + number / 100)
    ledger.close()
    made = page.make(ledger.path)
    assert "<b>x" not in made.html
    assert "<b>x" in Document(made.html).text
    slices = [f for f in figures_of(made.html) if f["name"].startswith("figure-slice")]
    assert {f["layout"]["xaxis"]["title"]["text"] for f in slices} == {"&lt;b&gt;x&lt;/b&gt;", "y"}


def test_no_request_leaves_the_page(made, written):
    document = Document(made.html)
    assert all(link.startswith(("#", "data:")) for link in document.links)
    assert "default-src 'none'" in made.html
    style = re.search("<style>(.*?)</style>", made.html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert written.stat().st_size < 6_000_000


def test_the_winner_s_predictions_are_in_the_page(tmp_path):
    path = scored(tmp_path / "ledger.jsonl")
    line = "The picture is not on this disk. In MLflow, artifact test_predictions.png of the run of"
    assert line in page.make(path).html
    record = read_record(path)
    picture = record.finals[record.scored["final"]].folder(tmp_path) / "test_predictions.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"\x89PNG...")
    made = page.make(path)
    assert line not in made.html
    assert '<img src="data:image/png;base64,iVBORy4uLg=="' in made.html
    picture.write_bytes(b"0" * 2_000_000)
    assert "The picture is too large for this page." in page.make(path).html


def test_the_twins_have_the_numbers(made):
    found = made.twin["answer"]
    text = Document(made.html).text
    for row in found["rows"]:
        for number in (f"{100 * row['accuracy']['mean']:.2f}", f"{row['validation']['mean']:.4f}"):
            assert number in made.markdown
            assert number in text
        for seed in row["seeds"]:
            assert f"| {seed['seed']} | {100 * seed['accuracy']:.2f} |" in made.markdown
    for difference in found["differences"].values():
        low, high = (f"{100 * difference[end]:+.2f}" for end in ("low", "high"))
        assert f"{low} to {high}" in made.markdown
        assert f"{low} to {high}" in text
    assert f"read {found['test_reads']} times" in made.markdown
    assert "python -m cnn_search.score digits" in made.markdown
    assert [row["trial"] for row in made.twin["history"]] == list(range(12))
    assert made.twin["setting"]["sessions"][0]["command"] == "sweep.py digits"


def test_only_full_fidelity_is_ranked(tmp_path):
    STATES["hyperband"](tmp_path / "ledger.jsonl").close()
    made = page.make(tmp_path / "ledger.jsonl")
    # 0.95 after one epoch of three is no best
    assert [row["best"] for row in made.twin["history"]] == [0.7] * 7 + [0.8]
    assert {row["name"] for row in made.twin["fronts"]["parameters"]} == {
        "trial 0 (vgg_bn)",
        "trial 7",
    }
    assert "Hyperband trained only survivors to full length" in made.markdown


def test_of_a_promoted_trial_all_epochs_count(tmp_path):
    ledger = begin(tmp_path / "ledger.jsonl", oracle="hyperband")
    train(ledger, ask(ledger, 0), 0.7)
    train(ledger, ask(ledger, 1, epochs=1), 0.5, epochs=1)
    train(ledger, ask(ledger, 2, parent=1), 0.9, trained=1)
    ledger.close()
    found = page.make(tmp_path / "ledger.jsonl").twin
    costs = {cost["name"]: cost["best"] for cost in found["comparison"]["costs"]}
    assert costs["training_seconds"] == EPOCHS * 1.5
    assert costs["training_flops"] == 3 * 2_002_000 * 1000 * EPOCHS
    (best,) = [line for line in found["curves"]["lines"] if line["role"] == "best"]
    assert [len(seed) for seed in best["values"]["val_accuracy"]] == [EPOCHS]


def test_the_baseline_is_drawn_as_such_whichever_weights_are_stronger():
    path = Path(__file__).parents[1] / "docs" / "results" / "digits.jsonl"
    found = page.make(path).twin
    assert found["comparison"]["baseline"] == "vgg_bn, last weights"
    roles = {line["role"]: line["name"] for line in found["curves"]["lines"]}
    assert roles == {"baseline": "vgg_bn", "best": "trial 10"}


def test_a_block_that_did_not_fit_the_images_is_not_shown_as_one_of_the_network():
    path = Path(__file__).parents[1] / "docs" / "results" / "digits.jsonl"
    trial = read_record(path).trials[10]
    assert (trial.values["depth"], trial.result["blocks_dropped"]) == (2, 1)
    assert trial.built["depth"] == 1
    assert set(trial.values) - set(trial.built) == {
        f"{name}_2" for name in ("filters", "padding", "normalisation", "pooling", "dropout")
    }
    changed = {row["name"]: row["best"] for row in page.make(path).twin["comparison"]["changed"]}
    assert (changed["depth"], changed["filters"]) == ([1], [64])


def test_a_baseline_that_breaks_the_constraints_is_shown_and_is_no_best(tmp_path):
    STATES["the_baseline_breaks_the_constraints"](tmp_path / "ledger.jsonl").close()
    found = page.make(tmp_path / "ledger.jsonl").twin
    assert found["history"][0]["score"] is not None
    assert found["history"][0]["best"] is None
    roles = {line["role"]: line["name"] for line in found["curves"]["lines"]}
    assert roles["baseline"] == "trial 0 (vgg_bn)"
    assert set(roles) == {"baseline", "best"}


def test_a_winner_that_the_space_recommended_is_said_to_be():
    ledgers = Path(__file__).parents[1] / "docs" / "results"
    said = {name: answer(read_record(ledgers / f"{name}.jsonl")) for name in ("cifar10", "digits")}
    recommended = "Trial 2, the space's recipe fast, classifies 92.54 % of the test images right, "
    assert said["cifar10"]["sentence"].startswith(recommended)
    assert said["digits"]["sentence"].startswith("Trial 10 classifies 99.00 %")


def test_one_seed_does_not_say_how_many_would_decide(tmp_path):
    STATES["one_of_the_book_s_seeds_is_left"](tmp_path / "ledger.jsonl").close()
    made = page.make(tmp_path / "ledger.jsonl")
    said = made.twin["answer"]["sentence"]
    assert "undecided, one seed does not tell how much seeds differ" in said
    assert "no number" not in made.markdown


def test_an_ablation_of_another_winner_or_book_is_not_this_answer_s(tmp_path):
    STATES["taken_apart"](tmp_path / "ledger.jsonl").close()
    record = read_record(tmp_path / "ledger.jsonl")
    assert answer(record)["ablation"]
    for where, key in ((record.ablation, "winner"), (record.plans[-1]["finalists"][0], "name")):
        before, where[key] = where[key], "another"
        assert answer(record)["ablation"] is None
        where[key] = before
    assert answer(record)["ablation"]


def test_a_long_table_and_a_large_figure_say_what_they_leave_out(tmp_path):
    ledger = begin(tmp_path / "ledger.jsonl")
    search(ledger, 4)
    ledger.close()
    record = read_record(ledger.path)
    row = analysis.history(record)[1]
    rows = [{**row, "trial": number} for number in range(2000)]
    figure = page.sections.charts.history_chart(rows, "val_accuracy")
    assert len(figure.plot["data"][0]["x"]) <= 501
    assert "501 of 2,000" in figure.note or "500 of 2,000" in figure.note
    assert len(figure.table.rows) == 2000


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_ledgers_of_published_numbers_render(tmp_path, name):
    source = ROOT / "docs" / "results" / f"{name}.jsonl"
    target = page.write(source, tmp_path / f"{name}.html")
    record = read_record(source)
    assert answer(record)["sentence"] in Document(target.read_text()).text
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{e}" for e in ("html", "md", "json")
    }


# What it says of the search


def test_importance_finds_what_mattered_and_says_what_it_cannot(tmp_path):
    few = page.make(scored_free(tmp_path / "few.jsonl", 12)).twin["importance"]
    assert few["rows"] == []
    assert few["note"].startswith("12 finished trials of full length are too few")
    many = importance.importance(read_record(scored_free(tmp_path / "many.jsonl", 150)))
    first = many["rows"][0]
    assert first["name"] == "strong"
    assert first["above"]
    assert first["low"] <= first["share"] <= first["high"]
    assert not any(row["above"] for row in many["rows"] if row["name"].startswith("noise"))
    assert sum(row["share"] for row in many["rows"]) == pytest.approx(1)
    assert importance.importance(read_record(tmp_path / "many.jsonl")) == many


def scored_free(path: Path, trials: int) -> Path:
    """Return the ledger of a search in which one hyperparameter alone matters."""
    ledger = begin(path)
    rng = np.random.default_rng(1)
    for number in range(trials):
        values = {f"noise_{i}": int(rng.integers(4)) for i in range(8)}
        values |= {"strong": int(rng.integers(4)), "rate": float(10 ** rng.uniform(-4, -1))}
        if values["noise_0"]:
            values["conditional"] = int(rng.integers(3))
        told = {"trial": number, "values": values, "seed": 1, "epochs": EPOCHS, "parent": None}
        ledger.append("ask", **told, source="oracle", baseline="", oracle={})
        train(ledger, {"trial": number}, 0.5 + 0.1 * values["strong"] + 0.02 * float(rng.random()))
    ledger.close()
    return path


def test_importance_takes_what_optuna_cannot(tmp_path):
    ledger = begin(tmp_path / "ledger.jsonl")
    for number in range(25):
        values = {"units": [64, number % 3], "mixed": ("a", 1, None, True)[number % 4]}
        told = {"trial": number, "values": values, "seed": 1, "epochs": EPOCHS, "parent": None}
        ledger.append("ask", **told, source="oracle", baseline="", oracle={})
        train(ledger, {"trial": number}, 0.5 + 0.1 * (number % 3))
    ledger.close()
    assert page.make(ledger.path).twin["importance"]["rows"][0]["name"] == "units"


def test_claims_are_differences_of_the_oracle_s_trials(tmp_path):
    ledger = begin(tmp_path / "ledger.jsonl")
    search(ledger, 60)
    ledger.close()
    found = claims.weigh_claims(read_record(ledger.path))
    rows = {row["topic"]: row for row in found["rows"]}
    assert found["trials"] == 58  # without the baseline and the one that failed
    depth = rows["Depth"]
    assert depth["verdict"] == "the first group is better"
    record = read_record(ledger.path)
    chosen = [t for t in record.trials.values() if t.status == "finished" and t.number]
    cut = int(re.search(r"\d", depth["first"]["label"])[0])
    deep = [t.result["score"] for t in chosen if t.values["depth"] >= cut]
    flat = [t.result["score"] for t in chosen if t.values["depth"] < cut]
    assert (depth["first"]["n"], depth["second"]["n"]) == (len(deep), len(flat))
    assert depth["difference"] == pytest.approx(np.mean(deep) - np.mean(flat))
    assert depth["low"] < depth["difference"] < depth["high"]
    assert rows["Larger filters"]["verdict"] == "it did not vary in this sweep"
    assert rows["Max or average pooling"]["verdict"] == "cannot tell"


def test_a_claim_s_better_group_is_the_lower_one_of_a_loss(tmp_path):
    STATES["minimised"](tmp_path / "ledger.jsonl").close()
    rows = claims.weigh_claims(read_record(tmp_path / "ledger.jsonl"))["rows"]
    depth = next(row for row in rows if row["topic"] == "Depth")
    assert depth["first"]["mean"] < depth["second"]["mean"]
    assert depth["difference"] > 0
    assert depth["verdict"] == "the first group is better"


def test_few_trials_make_no_claim(tmp_path):
    STATES["searched"](tmp_path / "ledger.jsonl").close()
    rows = claims.weigh_claims(read_record(tmp_path / "ledger.jsonl"))["rows"]
    assert all(row["difference"] is None for row in rows if row["topic"] == "Depth")


def test_intervals_of_claims_cover(tmp_path):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        groups = [np.where(rng.random(10) < 0.15, 0.1, rng.beta(6, 2, 10)) for _ in range(2)]
        low, high = claims.bootstrap_difference(*groups)
        covered += low <= 0 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_of_points_none_beats_those_in_front():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.8), (4.0, 0.9), (1.0, 0.4)]
    assert analysis.pareto(points) == [1, 3, 0]
    assert analysis.pareto([]) == []


def test_values_of_blocks_stand_together():
    values = {"filters_2": 64, "filters_1": 32, "filters_10": 8, "depth": 2}
    assert comparison.by_root(values) == {"filters": [32, 64, 8], "depth": [2]}


# The command


def run(*arguments: str) -> int:
    return command.main.main(list(arguments), standalone_mode=False) or 0


def test_the_command_writes_beside_the_ledger_and_prints_the_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = scored(tmp_path / "mlruns" / "sweeps" / "digits-20260101-000000" / "ledger.jsonl")
    assert run("digits") == 0
    said = capsys.readouterr()
    assert answer(read_record(path))["sentence"] in said.out
    assert "note: the page was not left in MLflow." in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert (path.parent / "report.html").exists()
    assert {p.name for p in path.parent.iterdir()} == {
        "ledger.jsonl",
        "report.html",
        "report.md",
        "report.json",
    }
    assert run("digits", "--json", "--to", "elsewhere/page.html") == 0
    twin = json.loads(capsys.readouterr().out)
    assert twin == json.loads((tmp_path / "elsewhere" / "page.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits"], "expected a sweep that ran; there is none called 'digits'"),
        (["--ledger", "none.jsonl"], "expected the ledger of a sweep; received No such file"),
        ([], "Expected either NAME or --ledger FILE."),
        (["digits", "--ledger", "x"], "Expected either NAME or --ledger FILE."),
        (["digits", "--to", "page.pdf"], "expected the name of an .html file"),
        (["--ledger", "ledger.jsonl", "--to", "ledger.jsonl/x.html"], "expected a file that can"),
    ],
)
def test_a_user_s_mistake_is_one_line(tmp_path, arguments, said):
    begin(tmp_path / "ledger.jsonl").close()
    done = subprocess.run(
        [sys.executable, "-m", "cnn_search.report", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_it_imports_neither_keras_nor_tensorflow(tmp_path):
    path = scored(tmp_path / "ledger.jsonl")
    code = (
        "import sys; import cnn_search.store; from cnn_search.report import __main__ as report; "
        f"report.main.main(['--ledger', {str(path)!r}], standalone_mode=False); "
        "assert not {'keras', 'tensorflow', 'keras_tuner'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_the_report_is_made_from_mlflow_and_left_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from cnn_search import store

    opened = store.open_store(tmp_path / "mlruns", "digits", create=True)
    client = opened.client()
    experiment = client.create_experiment("digits", opened.artifacts)
    older, newer, other = (
        "digits-20260101-000000",
        "digits-20260102-000000",
        "digits-2-20270101-0",
    )
    for sweep in (older, newer, other):
        tags = {"cnn_search.sweep": sweep, "cnn_search.kind": "sweep"}
        parent = client.create_run(experiment, tags=tags)
        path = scored(tmp_path / sweep / "ledger.jsonl")
        if sweep == older:
            client.log_artifact(parent.info.run_id, path)
            old = parent.info.run_id
    hostile = {"cnn_search.sweep": "digits-20990101-/../../escaped", "cnn_search.kind": "sweep"}
    escaped = client.create_run(experiment, tags=hostile).info.run_id
    client.log_artifact(escaped, tmp_path / older / "ledger.jsonl")
    with pytest.raises(LedgerError, match="expected the artifact ledger.jsonl of digits-20260102"):
        run("digits")
    newest = next(store.find_runs(opened, experiment, "cnn_search.sweep", newer))
    client.log_artifact(newest.info.run_id, tmp_path / newer / "ledger.jsonl")
    assert run("digits") == 0
    assert f"{newer}.html" in capsys.readouterr().out
    assert (tmp_path / f"{newer}.html").exists()
    assert isinstance(client, mlflow.MlflowClient)
    # the twin has the name that the ledger has
    left = {file.path for file in client.list_artifacts(old)}
    assert left == {"ledger.jsonl", *(f"{newer}.{end}" for end in ("html", "md", "json"))}


# In a browser


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_everything_and_asks_for_nothing(browser, written, width):
    tab = browser.new_page(viewport={"width": width, "height": 844})
    asked, wrong = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(written.as_uri())
    tab.wait_for_selector("body[data-drawn]")
    assert asked == [written.as_uri()]
    assert wrong == []
    assert tab.title() == "digits-20260101-000000: a better network than the tutorial's?"
    drawn = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => !!p.querySelector('svg'))"
    )
    assert drawn
    assert all(drawn)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert HOSTILE[:15] in tab.inner_text("#figure-confusion")
    outside = """[...document.querySelectorAll("body *")]
        .filter(e => !e.closest(".scroll, pre, svg"))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"""
    assert tab.evaluate(outside) == 0
    tab.close()


def test_on_paper_every_table_is_open(browser, written):
    tab = browser.new_page()
    tab.goto(written.as_uri())
    tab.wait_for_selector("body[data-drawn]")
    tab.evaluate(
        "window.addEventListener('beforeprint', () => { window.open_ = "
        "document.querySelectorAll('details:not([open])').length })"
    )
    assert len(tab.pdf()) > 50_000
    assert tab.evaluate("window.open_") == 0
    tab.close()
