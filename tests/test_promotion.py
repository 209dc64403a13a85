"""Tests of `evidence`, `promotion` and `aliases`: made-up scorings, registered in a real MLflow."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import test_tracking as tiny
from click.testing import CliRunner

from cnn_search import aliases, evidence, models, promotion, registry, statistics, store, tracking
from cnn_search.errors import TrackingError
from cnn_search.ledger import Event, Record, pack_bits
from cnn_search.store import Store

# MLflow 3.17 warns of its own type hints while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
Correct = npt.NDArray[np.bool_]
IMAGES = 300


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.forget_the_user(monkeypatch)


@pytest.fixture
def where(tmp_path: Path) -> Store:
    return store.open_store(tmp_path / "mlruns", "digits", create=True)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folder, as far as registering needs it: a tiny network."""
    import keras

    folder = tmp_path_factory.mktemp("trial")
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), *layers]).save(folder / "model.keras")
    images = np.zeros((3, 4, 4, 1), np.uint8)
    np.savez(folder / "validation_predictions.npz", images=images)
    (folder / "configuration.json").write_text("{}")
    return folder


def correct(accuracy: float, seeds: int = 4, *, noise: int = 0) -> Correct:
    """Gives correctness `(seeds, IMAGES)`: the hardest images are wrong, and a few by chance."""
    right = np.tile(np.arange(IMAGES) < round(accuracy * IMAGES), (seeds, 1))
    for seed, row in enumerate(right):
        row[np.random.default_rng([noise, seed]).choice(IMAGES, 6, replace=False)] ^= True
    return right


class Sweep:
    """A sweep told event by event, as a driver would, and registered as its follower would."""

    def __init__(self, where: Store, files: Path, sweep: str = "digits-a", name: str = "digits"):
        self.where, self.files, self.record = where, files, Record()
        self.folder = files.parent / f"{where.uri.split('/')[-3]}-{sweep}"
        self.events: list[Event] = []
        self.runs: dict[str, str] = {}
        names = {"class_names": ["a", "b"], "input_shape": [4, 4, 1]}
        data = {"name": name, "source": "none", "digest": "of the training part", **names}
        training = {"epochs": 1, "weights": "best"}
        self.definition = {"name": name, "objective": "val_accuracy", "training": training}
        self.tell(
            "sweep",
            sweep=sweep,
            digest="d",
            direction="max",
            definition=self.definition,
            data={**data, "train_images": 80, "validation_images": 20},
        )
        told = {"versions": {}, "machine": {}, "git": {}, "command": "none"}
        self.tell("session", job="search", **told)

    def tell(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, "time": 1.8e9 + len(self.events), **fields}
        self.events.append(event)
        self.record.apply(event)

    def _train(self, which: dict[str, int], score: float) -> None:
        attempt = {**which, "attempt": 1}
        shutil.copytree(self.files, self.record.trial_of(attempt).folder(self.folder))
        self.tell("start", **attempt, threads=1, backend="none")
        metrics = {"val_accuracy": score, "val_loss": 1 - score}
        self.tell("epoch", **attempt, epoch=1, metrics=metrics, seconds=1.0)
        sizes = dict.fromkeys(("trainable_parameters", "flops", "blocks_dropped", "model_bytes"), 1)
        done = {"score": score, "metrics": metrics, "epochs": 1, "best_epoch": 1, "parameters": 34}
        self.tell("done", **attempt, **done, **sizes)

    def search(self, score: float) -> str:
        """Tells of one more trial, which is the best."""
        number = len(self.record.trials)
        values = {"depth": number}
        told = {"seed": 1, "epochs": 1, "parent": None, "source": "oracle"}
        self.tell("ask", trial=number, values=values, **told, baseline="", oracle={})
        self._train({"trial": number}, score)
        self.tell("champion", trial=number)
        return self.register(number)

    def score(
        self, right: Correct, *, depth: int = 1, test_digest: str = "of the test part"
    ) -> str:
        """Tells of a scoring, won by the configuration `depth` with this correctness."""
        seeds, values = len(right), {"depth": depth}
        winner = f"trial {depth}"
        finalist = {"name": winner, "trial": depth, "baseline": "", "values": values}
        test = {"test_digest": test_digest, "test_images": right.shape[1]}
        self.tell("plan", finalists=[finalist], seeds=seeds, epochs=1, **test)
        known = [t.number for t in self.record.finals.values() if t.values == values]
        for seed in range(len(known), seeds):
            number = len(self.record.finals)
            told = {"finalist": winner, "values": values, "seed": seed + 1, "epochs": 1}
            self.tell("retrain", final=number, **told)
            self._train({"final": number}, 0.9 - seed / 100)
        for trial, bits in zip(self.record.retrainings(winner), right, strict=True):
            told = {"accuracy": float(bits.mean()), "loss": 0.1, "correct": pack_bits(bits)}
            told |= {"batch_seconds": 0.1, "image_seconds": 0.1}
            self.tell("test", final=trial.number, weights="best", **told)
        self.tell("scored", winner=winner, final=self.record.retrainings(winner)[seeds // 2].number)
        return self.register(self.record.scored["final"], final=True)

    def register(self, number: int, *, final: bool = False) -> str:
        """Does what the follower does for the events "champion" and "scored"."""
        client, record = self.where.client(), self.record
        trial = record.finals[number] if final else record.trials[number]
        key = f"{final}-{number}"
        if key not in self.runs:
            experiment = self.where.experiment_id(client) or client.create_experiment(
                self.where.experiment, self.where.artifacts
            )
            self.runs[key] = client.create_run(experiment, 0, {}, key).info.run_id
        told = models.register(client, record, self.folder, trial, self.runs[key])
        models.link(client, record, trial, self.runs[key])
        return told


@pytest.fixture
def begin(where: Store, files: Path) -> Iterator[Callable[..., Sweep]]:
    """Begins sweeps of one store."""
    begun: list[Sweep] = []

    def make(sweep: str = "digits-a", name: str = "digits") -> Sweep:
        begun.append(Sweep(where, files, sweep, name))
        return begun[-1]

    yield make
    for one in begun:
        shutil.rmtree(one.folder, ignore_errors=True)


def held(where: Store, name: str = "digits") -> dict[str, int]:
    return aliases.aliases_and_history(where, name)[0]


def history(where: Store, name: str = "digits") -> list[aliases.Move]:
    return aliases.aliases_and_history(where, name)[1]


def version(where: Store, number: int, name: str = "digits") -> Any:
    return where.client().get_model_version(name, str(number))


def everything(where: Store) -> Any:
    """Gives all that the registry says, in one comparable thing."""
    client = where.client()
    return [
        (
            model.tags,
            model.aliases,
            sorted(
                (int(v.version), sorted(v.tags.items()))
                for v in client.search_model_versions(f"name = '{model.name}'")
            ),
        )
        for model in client.search_registered_models()
    ]


def run(where: Store, *arguments: object) -> str:
    mlruns = Path(where.uri.removeprefix("sqlite:///")).parent
    command = [*map(str, arguments), "--mlruns", str(mlruns)]
    return CliRunner().invoke(registry.main, command, catch_exceptions=False).output


def run_json(where: Store, *arguments: object) -> Any:
    return json.loads(run(where, *arguments, "--json"))


# What a scored version says of itself


def test_a_scored_version_has_its_evidence_in_tags_and_beside_its_model(
    begin: Callable[..., Sweep], where: Store
) -> None:
    right = correct(0.9)
    sweep = begin()
    told = sweep.score(right)
    assert told == "digits version 1 became champion: there was none"
    found, expected = version(where, 1), statistics.accuracy(right)
    tags = found.tags
    assert tags["evidence"] == "test"
    assert tags["test_digest"] == "of the test part"
    assert tags["test_images"] == "300"
    assert tags["seeds"] == "4"
    assert tags["finalist"] == "trial 1"
    assert tags["cnn_search.sweep"] == "digits-a"
    assert float(tags["test_accuracy"]) == pytest.approx(right.mean(), abs=1e-6)
    assert float(tags["test_accuracy_low"]) == pytest.approx(expected.low, abs=1e-6)
    assert float(tags["test_accuracy_high"]) == pytest.approx(expected.high, abs=1e-6)
    assert tags["val_accuracy"] == "0.880000"  # of the seed whose weights it has
    assert tags["parameters"] == "34"
    assert json.loads(tags["class_names"]) == ["a", "b"]
    assert tags["promotion"] == told
    assert where.client().get_run(found.run_id).data.tags["promotion"] == told
    assert np.array_equal(evidence.read_scores(where.client(), found), right)


def test_list_and_show_tell_test_accuracy_interval_seeds_and_images(
    begin: Callable[..., Sweep], where: Store
) -> None:
    right = correct(0.9)
    begin().score(right)
    found = statistics.accuracy(right)
    assert found.low is not None
    assert found.high is not None
    summary = (
        f"test accuracy {found.mean:.4f} (95 % {found.low:.3f} to {found.high:.3f}, 4 seeds, 300 "
        "images)"
    ).replace(" 0.", " .")
    summary = summary.replace("accuracy .", "accuracy 0.")
    assert f"version 1, {summary}, 34 parameters, trial 1 of digits-a" in run(where, "list")
    assert f"digits version 1, champion: {summary}" in run(where, "show", "digits")
    told = run_json(where, "show", "digits")
    assert told["test"]["accuracy"] == pytest.approx(found.mean, abs=1e-6)
    assert told["test"]["seeds"] == 4
    assert told["retraining"] == 2
    assert told["trial"] == 1
    assert [told] == run_json(where, "list")


def test_a_seed_that_failed_is_no_evidence(begin: Callable[..., Sweep], where: Store) -> None:
    sweep = begin()
    sweep.score(correct(0.9, 3))
    del sweep.record.finals[0].tests["best"]
    other = begin("digits-b")
    other.record.finals = sweep.record.finals
    other.record.plans, other.record.scored = sweep.record.plans, sweep.record.scored
    assert evidence.write_tags(other.record, other.record.finals[1])["seeds"] == "2"


# The gate


def test_a_scored_version_displaces_a_champion_of_validation(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep = begin()
    sweep.search(0.99)
    told = sweep.score(correct(0.6))
    assert told == (
        "digits version 2 became champion: it is scored on the test part, version 1 has validation "
        "scores alone"
    )
    assert held(where) == {"champion": 2}
    assert [(m["from"], m["to"], m["evidence"], m["by"]) for m in history(where)] == [
        (None, 1, "validation", "digits-a"),
        (1, 2, "test", "digits-a"),
    ]
    assert not any(move["challenge"] for move in history(where))


def test_a_challenger_that_is_better_image_by_image_becomes_champion(
    begin: Callable[..., Sweep], where: Store
) -> None:
    worse, better = correct(0.8), correct(0.92, noise=1)
    begin().score(worse)
    told = begin("digits-b").score(better)
    gate = statistics.gate(better, worse, 1)
    assert gate.passed
    assert held(where) == {"champion": 2}
    assert history(where)[-1]["challenge"] == {
        "against": 1,
        "test_digest": "of the test part",
        "number": 1,
        "alpha": 0.0125,
        "difference": gate.difference.mean,
        "bound": gate.bound,
    }
    points = f"{100 * gate.difference.mean:+.2f} points from version 1"
    assert f"on the same 300 test images it is {points}, lower bound +" in told
    assert told.endswith("(alpha 0.0125, challenge 1 on these images), so it is better")


def test_one_that_is_as_good_becomes_challenger_and_each_challenge_asks_for_more(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.9))
    told = begin("digits-b").score(correct(0.9, noise=1))
    assert "digits version 2 became challenger, champion stays version 1: on the same" in told
    assert "alpha 0.0125, challenge 1 on these images), so it is not shown to be better." in told
    assert told.endswith("python -m cnn_search.registry promote digits --version 2 --force")
    assert held(where) == {"champion": 1, "challenger": 2}
    told = begin("digits-c").score(correct(0.9, noise=2))
    assert "alpha 0.00417, challenge 2 on these images" in told
    assert held(where) == {"champion": 1, "challenger": 3}
    # another registered model, the same test images
    begin("small-a", "small").score(correct(0.9))
    assert "challenge 3 on these images" in begin("small-b", "small").score(correct(0.9, noise=1))
    assert promotion.count_challenges(where.client(), "of the test part") == 3
    assert promotion.count_challenges(where.client(), "of another one") == 0


def test_what_passes_as_the_first_challenge_may_fail_as_a_later_one(
    begin: Callable[..., Sweep], where: Store
) -> None:
    champion, challenger = correct(0.85), correct(0.92, noise=1)
    first, last = (statistics.gate(challenger, champion, n).passed for n in (1, 3))
    assert first
    assert not last
    begin().score(champion)
    for n in range(2):
        begin(f"digits-{n}").score(correct(0.6, noise=n))
    assert "challenge 3" in begin("digits-late").score(challenger)
    assert held(where) == {"champion": 1, "challenger": 4}


def test_validation_never_displaces_a_scored_champion(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep = begin()
    sweep.score(correct(0.5))
    for one in (sweep, begin("digits-b")):
        told = one.search(1.0)
        assert "champion stays version 1: version 1 was scored on the test part" in told
    assert held(where) == {"champion": 1, "challenger": 3}
    assert promotion.count_challenges(where.client(), "of the test part") == 0


def test_a_better_validation_of_another_sweep_stays(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().search(0.9)
    told = begin("digits-b").search(0.8)
    assert "its val_accuracy is 0.800000, that of version 1, of digits-a, 0.900000" in told
    assert held(where) == {"champion": 1, "challenger": 2}
    begin("digits-c").search(0.95)
    assert held(where) == {"champion": 3, "challenger": 2}


@pytest.mark.parametrize(
    ("tags", "direction", "promoted"),
    [
        ({}, "max", False),
        ({}, "min", True),
        ({"val_accuracy": "0.1"}, "max", True),  # it is worse
        ({"data_digest": "other"}, "max", True),
        ({"objective": "val_loss", "val_loss": "0.1"}, "max", True),
        ({evidence.MARK: "this"}, "max", True),  # of the same sweep
    ],
)
def test_a_champion_of_validation_stays_if_it_is_comparable_and_better(
    where: Store, tmp_path: Path, tags: dict[str, str], direction: str, promoted: bool
) -> None:
    client = where.client()
    client.create_registered_model("digits")
    common = {"objective": "val_accuracy", "data_digest": "d", "evidence": "validation"}

    def create(**own: str) -> Any:
        return client.create_model_version("digits", tmp_path.as_uri(), tags={**common, **own})

    champion = create(**{evidence.MARK: "old", "val_accuracy": "0.9", **tags})
    new = create(**{evidence.MARK: "this", "val_accuracy": "0.5"})
    assert promotion.judge(client, new, champion, direction).promoted is promoted


def test_other_test_images_do_not_compare(begin: Callable[..., Sweep], where: Store) -> None:
    begin().score(correct(0.5))
    told = begin("digits-b").score(correct(0.99), test_digest="of another one")
    assert "version 1 was scored on other test images, so they do not compare" in told
    assert told.endswith("promote digits --version 2 --force")
    assert held(where) == {"champion": 1, "challenger": 2}
    assert promotion.count_challenges(where.client(), "of another one") == 0


def test_more_seeds_of_the_champion_s_configuration_are_no_challenge(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep, right = begin(), correct(0.9, 6)
    sweep.score(right[:3])
    told = sweep.score(right)
    assert told.endswith("it is the configuration of version 1: 6 seeds, 3 before")
    assert held(where) == {"champion": 2}
    assert version(where, 2).tags["seeds"] == "6"
    # each version keeps its own scores, also where both are of one retraining
    assert len(evidence.read_scores(where.client(), version(where, 1))) == 3
    assert "champion stays version 2" in sweep.score(right[:4])
    assert held(where) == {"champion": 2, "challenger": 3}
    assert promotion.count_challenges(where.client(), "of the test part") == 0


def test_another_configuration_of_the_same_sweep_is_a_challenge(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep = begin()
    sweep.score(correct(0.9))
    assert "challenge 1 on" in sweep.score(correct(0.9, noise=1), depth=2)
    assert "challenge 2 on" in sweep.score(correct(0.9, 6, noise=1), depth=2)
    assert held(where) == {"champion": 1, "challenger": 3}


def test_the_same_scoring_asked_for_again_is_the_same_version(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep, right = begin(), correct(0.9, 5)
    sweep.score(right[:3])
    sweep.score(right)
    before = everything(where)
    sweep.score(right[:3])  # a third plan, with the seeds of the first
    assert everything(where) == before


def test_one_seed_is_not_compared_and_not_counted(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.5))
    told = begin("digits-b").score(correct(0.99, 1))
    assert "one seed, of it or of version 1, does not tell how much seeds differ" in told
    assert held(where)["champion"] == 1
    assert promotion.count_challenges(where.client(), "of the test part") == 0
    shown = run(where, "show", "digits", "--alias", "challenger")
    assert "(no interval, 1 seed, 300 images)" in shown


# Delivered again, cut short


def test_delivered_again_nothing_changes(begin: Callable[..., Sweep], where: Store) -> None:
    first, second = begin(), begin("digits-b")
    first.search(0.9)
    first.score(correct(0.9))
    refused = second.score(correct(0.9, noise=1))
    for hand in (lambda: None, lambda: aliases.rollback(where, "digits")):
        hand()
        before = everything(where)
        first.register(0)
        first.register(first.record.scored["final"], final=True)
        assert second.register(second.record.scored["final"], final=True) == refused
        assert everything(where) == before


class Killed(BaseException):
    """What no `except Exception` catches."""


class Dying:
    """A client that dies after so many calls."""

    def __init__(self, client: mlflow.MlflowClient, calls: int) -> None:
        self.client, self.left = client, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return found(*arguments, **options)

        return call


@pytest.mark.parametrize("accuracy", [0.8, 0.97])
def test_a_decision_that_was_cut_short_anywhere_is_made_once(
    begin: Callable[..., Sweep], where: Store, accuracy: float
) -> None:
    begin().score(correct(0.8))
    begin("digits-b").score(correct(0.8, noise=1))
    undecided = held(where)
    begin("digits-c").score(correct(accuracy, noise=2))
    assert held(where) == (
        {"champion": 1, "challenger": 3} if accuracy == 0.8 else {**undecided, "champion": 3}
    )
    client, expected = where.client(), without_time(everything(where))
    for calls in range(100):
        client.delete_model_version_tag("digits", "3", "promotion")
        client.delete_registered_model_tag("digits", "alias.0003")
        for alias, number in undecided.items():
            client.set_registered_model_alias("digits", alias, str(number))
        with contextlib.suppress(Killed):
            promotion.decide(Dying(client, calls), version(where, 3), "max")  # type: ignore[arg-type]
            break
        promotion.decide(client, version(where, 3), "max")
        assert without_time(everything(where)) == expected
    assert calls >= 6


def without_time(told: Any) -> Any:
    """Leaves out when the last of the three moves was made."""
    move = json.loads(told[0][0].pop("alias.0003"))
    assert move.pop("at")
    assert move["challenge"]["number"] == 2
    return told, move


def test_a_move_that_came_in_between_is_not_undone(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.8))
    begin("digits-b").score(correct(0.95, noise=1))
    aliases.rollback(where, "digits")
    client = where.client()
    client.delete_model_version_tag("digits", "2", "promotion")  # as if it died there
    promotion.decide(client, version(where, 2), "max")
    assert held(where) == {"champion": 1}


@pytest.mark.usefixtures("drawn")
def test_a_follower_delivers_search_and_scoring_into_a_wiped_store(
    begin: Callable[..., Sweep],
    where: Store,
    tmp_path: Path,
) -> None:
    sweep = begin()
    sweep.search(0.9)
    sweep.score(correct(0.9))
    tiny.write_ledger(sweep.folder, sweep.events)
    told = []
    for n in range(2):
        fresh = store.open_store(tmp_path / f"fresh {n}", "digits", create=True)
        for _ in range(2):
            follower = tracking.Follower(fresh, sweep.folder)
            assert follower.deliver() == ""
        assert held(fresh) == {"champion": 2}
        told.append([(m["from"], m["to"], m["why"]) for m in history(fresh)])
        assert np.array_equal(evidence.read_scores(fresh.client(), version(fresh, 2)), correct(0.9))
        (sweep.folder / "tracking.json").unlink()
    assert told[0] == told[1] == [(m["from"], m["to"], m["why"]) for m in history(where)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.draw_as_before(monkeypatch)


@pytest.mark.usefixtures("drawn")
def test_a_follower_says_what_became_of_the_version(begin: Callable[..., Sweep]) -> None:
    sweep = begin()
    assert sweep.search(0.9) == ""  # nothing was against it
    sweep.score(correct(0.9))
    tiny.write_ledger(sweep.folder, sweep.events)
    said: list[str] = []
    follower = tracking.Follower(sweep.where, sweep.folder)
    follower.start()
    assert follower.close(said.append) == ""
    why = "it is scored on the test part, version 1 has validation scores alone"
    assert f"note: digits version 2 became champion: {why}" in said


# What is not there any more, or never was


def test_a_champion_whose_scores_were_deleted_stays_and_is_not_challenged(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.5))
    shutil.rmtree(version(where, 1).source.removeprefix("file://"))
    told = begin("digits-b").score(correct(0.99))
    assert "champion stays version 1: the test scores of version 1 cannot be read (" in told
    assert "so they do not compare. To promote it all the same: python" in told
    assert held(where) == {"champion": 1, "challenger": 2}
    assert promotion.count_challenges(where.client(), "of the test part") == 0
    with pytest.raises(TrackingError, match="the files of digits version 1; received .* rollback"):
        run(where, "pull", "digits")


@pytest.mark.parametrize("damage", ["", "[]", '{"test_images": 300, "seeds": []}'])
def test_scores_that_are_damaged_are_said(
    begin: Callable[..., Sweep], where: Store, damage: str
) -> None:
    begin().score(correct(0.5))
    file = Path(version(where, 1).source.removeprefix("file://")) / evidence.SCORES
    file.write_text(damage)
    told = begin("digits-b").score(correct(0.99))
    assert "the test scores of version 1 cannot be read (" in told


def test_a_server_that_is_away_is_not_taken_for_lost_scores(
    begin: Callable[..., Sweep], where: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin().score(correct(0.5))
    champion, client = version(where, 1), where.client()

    def away(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", away)
    monkeypatch.setattr(client, "get_registered_model", away)
    with pytest.raises(ConnectionError):
        evidence.read_scores(client, champion)


def test_a_passing_fault_decides_nothing(
    begin: Callable[..., Sweep], where: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin().score(correct(0.5))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", full)
        with pytest.raises(OSError, match="No space left"):
            evidence.read_scores(where.client(), version(where, 1))
    told = begin("digits-b").score(correct(0.99))
    assert "version 2 became champion: on the same 300 test images" in told


def test_a_champion_whose_run_was_deleted_is_compared_all_the_same(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.8))
    where.client().delete_run(version(where, 1).run_id)
    begin("digits-b").score(correct(0.95))
    assert held(where) == {"champion": 2}


def test_a_champion_that_was_deleted_leaves_its_place(
    begin: Callable[..., Sweep], where: Store
) -> None:
    sweep = begin()
    sweep.score(correct(0.95))
    where.client().delete_model_version("digits", "1")
    begin("digits-b").search(0.5)
    told = version(where, 2).tags["promotion"]
    assert told == "digits version 2 became champion: there was none"
    assert held(where) == {"champion": 2}


def forget(where: Store, number: int, *tags: str) -> None:
    """Makes a version look as an older program, or a stranger, left it."""
    client = where.client()
    for tag in tags:
        client.delete_model_version_tag("digits", str(number), tag)
    for key in client.get_registered_model("digits").tags:
        client.delete_registered_model_tag("digits", key)


def test_a_champion_of_an_older_version_of_the_program_has_validation_evidence(
    begin: Callable[..., Sweep], where: Store
) -> None:
    old = begin()
    old.search(0.9)
    forget(where, 1, "promotion")
    old.register(0)  # delivered again by this version of the program
    assert held(where) == {"champion": 1}
    assert "stays version 1" in begin("digits-b").search(0.8)
    begin("digits-c").score(correct(0.5))
    assert held(where)["champion"] == 3
    assert aliases.rollback(where, "digits")["to"] == 1


@pytest.mark.parametrize("tag", ["evidence", "cnn_search.sweep"])
def test_a_champion_of_unknown_evidence_stays(
    begin: Callable[..., Sweep], where: Store, tag: str
) -> None:
    begin().search(0.9)
    forget(where, 1, tag)
    for told in (begin("digits-b").search(0.99), begin("digits-c").score(correct(0.99))):
        assert "champion stays version 1: nothing tells what version 1 was judged by" in told
        assert "--force" in told
    assert held(where) == {"champion": 1, "challenger": 3}


def test_weights_that_are_gone_are_said(begin: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = begin()
    sweep.files = tmp_path / "trial without weights"
    sweep.files.mkdir()
    told = sweep.search(0.9)
    assert told == "trial 0 is not registered: its weights are no longer on the disk"
    told = sweep.score(correct(0.9))
    assert told == "retraining 2 is not registered: its weights are no longer on the disk"


# By hand


def test_rollback_goes_back_step_by_step_and_is_recorded(
    begin: Callable[..., Sweep], where: Store
) -> None:
    for n, accuracy in enumerate((0.6, 0.75, 0.9)):
        begin(f"digits-{n}").score(correct(accuracy, noise=n))
    assert held(where) == {"champion": 3}
    said = run(where, "rollback", "digits")
    assert said == "digits: champion is version 2 now, before: 3.\n"
    assert "rolled back from version 3 (20" in version(where, 2).tags["promotion"]
    move = run_json(where, "rollback", "digits")
    assert (move["from"], move["to"], move["how"]) == (2, 1, "rollback")
    with pytest.raises(TrackingError, match="champion before; its history has none. Another one"):
        run(where, "rollback", "digits")
    assert held(where) == {"champion": 1}
    moves = run_json(where, "history", "digits")
    assert [(m["from"], m["to"], m["how"]) for m in moves] == [
        *((None, 1, "evidence"), (1, 2, "evidence"), (2, 3, "evidence")),
        *((3, 2, "rollback"), (2, 1, "rollback")),
    ]
    assert moves == history(where)
    begin("digits-new").score(correct(0.95, noise=9))
    assert held(where) == {"champion": 4}
    assert aliases.rollback(where, "digits")["to"] == 1


def test_rollback_passes_over_versions_that_were_deleted(
    begin: Callable[..., Sweep], where: Store
) -> None:
    for n, accuracy in enumerate((0.6, 0.75, 0.9)):
        begin(f"digits-{n}").score(correct(accuracy, noise=n))
    where.client().delete_model_version("digits", "2")
    assert aliases.rollback(where, "digits")["to"] == 1
    where.client().delete_model_version("digits", "1")
    assert held(where) == {}
    with pytest.raises(TrackingError, match="its history has none"):
        aliases.rollback(where, "digits")


def test_rollback_of_a_forced_return_goes_forth_again(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().score(correct(0.6))
    begin("digits-b").score(correct(0.9, noise=1))
    aliases.promote(where, "digits", 1, force=True)
    assert aliases.rollback(where, "digits")["to"] == 2
    assert aliases.rollback(where, "digits")["to"] == 1
    with pytest.raises(TrackingError, match="its history has none"):
        aliases.rollback(where, "digits")


def test_history_tells_who_moved_which_alias_when_and_why(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().search(0.9)
    begin("digits-b").search(0.8)
    told = run(where, "history", "digits").splitlines()
    assert told[0] == "digits: challenger is version 2, champion is version 1"
    assert told[1].startswith(time.strftime("%Y-", time.gmtime()))
    assert told[1].endswith("champion   - -> 1  (validation evidence)  by digits-a")
    assert told[2].strip() == "there was none"
    assert told[3].endswith("challenger - -> 2  (validation evidence)  by digits-b")
    assert "val_accuracy is 0.800000" in told[4]
    for tag in where.client().get_registered_model("digits").tags.values():
        assert len(tag) < 1000


def test_force_promotes_and_is_recorded(begin: Callable[..., Sweep], where: Store) -> None:
    begin().score(correct(0.9))
    begin("digits-b").score(correct(0.9, noise=1))
    with pytest.raises(TrackingError, match=r"expected --force.*On record: .*not shown to be bet"):
        run(where, "promote", "digits")
    assert held(where) == {"champion": 1, "challenger": 2}
    assert len(history(where)) == 2
    said = run(where, "promote", "digits", "--force")
    assert said == "digits: champion is version 2 now, before: 1.\n"
    assert held(where) == {"champion": 2}
    assert history(where)[-1]["how"] == "force"
    assert history(where)[-1]["by"] == "registry promote --force"
    assert "became champion: forced, not by evidence" in run(where, "show", "digits")
    said = run(where, "promote", "digits", "--version", 2, "--force")
    assert said == "digits: that version is champion already.\n"
    assert len(history(where)) == 3
    move = run_json(where, "promote", "digits", "--version", 1, "--force")
    assert (move["from"], move["to"], move["how"]) == (2, 1, "force")


def test_what_cannot_be_promoted_or_shown_is_said(
    begin: Callable[..., Sweep], where: Store
) -> None:
    begin().search(0.9)
    client = where.client()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///nowhere")
    with pytest.raises(TrackingError, match="expected a challenger of digits; there is none"):
        run(where, "promote", "digits", "--force")
    with pytest.raises(TrackingError, match="that a sweep registered; received 7"):
        run(where, "promote", "digits", "--version", 7, "--force")
    with pytest.raises(TrackingError, match="that a sweep registered; received 1"):
        run(where, "promote", "foreign", "--version", 1, "--force")
    for command in ("history", "rollback", "promote"):
        with pytest.raises(TrackingError, match="the name of a registered model; received \"di'g"):
            run(where, command, "di'gits")
    with pytest.raises(TrackingError, match="a model with a challenger, one of none; received 'di"):
        run(where, "show", "digits", "--alias", "challenger")
    assert "No move is on record" in run(where, "history", "foreign")


def test_the_challenger_is_shown_and_pulled(
    begin: Callable[..., Sweep], where: Store, tmp_path: Path
) -> None:
    begin().score(correct(0.9))
    sweep = begin("digits-b")
    told = sweep.score(correct(0.9, noise=1))
    shown = run_json(where, "show", "digits", "--alias", "challenger")
    assert (shown["version"], shown["alias"]) == (2, "challenger")
    assert shown["uri"] == "models:/digits@challenger"
    assert shown["promotion"] == told
    run_id = version(where, 2).run_id
    where.client().log_artifact(run_id, str(sweep.files / "configuration.json"))
    written = run_json(where, "pull", "digits", "--alias", "challenger", "--to", tmp_path / "here")
    assert [Path(file).name for file in written] == [
        *("digits.keras", "digits.classes.json", "digits.configuration.json")
    ]
    pulled = (tmp_path / "here" / "digits.keras").read_bytes()
    assert pulled == (sweep.files / "model.keras").read_bytes()
