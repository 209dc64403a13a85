"""The loop: ask the oracle, hand the trial to the engine, write down what happened.

A sweep that was cut short, however roughly, is taken up again by replaying its ledger into a fresh
oracle; a trial that was running goes on from its last checkpoint as a new attempt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_search import tracking
from cnn_search.datasets import Dataset
from cnn_search.definition import (
    NOT_IN_DIGEST,
    Definition,
    differences,
    digest,
    from_record,
)
from cnn_search.driver import Driver, OnEvent, Outcome, Say
from cnn_search.earlier import recall
from cnn_search.errors import DefinitionError, LedgerError
from cnn_search.ledger import (
    ENDED,
    ENDINGS,
    IMAGES,
    OPEN_ENDS,
    Event,
    Record,
    Trial,
    find_sweep,
    hold,
    make_folder,
    read_events,
    read_record,
    size_of,
    sweeps_folder,
)
from cnn_search.limits import Limit, violations
from cnn_search.oracles import Ask, Oracle
from cnn_search.probe import probe
from cnn_search.pruners import Pruner
from cnn_search.spaces import complete, declared, fingerprint, outside, size
from cnn_search.speed import Speed, fit
from cnn_search.subject import baseline_values, searched, setup_of
from cnn_search.training import OBJECTIVES, SHOWN_IMAGES, make_space

MOST_REFUSED = 200  # configurations in a row that break the constraints
GIVE_UP_AFTER = 5  # trials, if every one of them failed


def run(
    definition: Definition,
    dataset: Dataset,
    mlruns: Path,
    *,
    tries: Sequence[Mapping[str, Any]] = (),
    new: bool = False,
    warm_start: str = "",
    reserve: Callable[[Record], float] = lambda record: 0.0,
    on_event: OnEvent = lambda record, event: None,
    say: Say = lambda line: None,
) -> Outcome:
    """Run a sweep to its end, or take up its newest unfinished one.

    Args:
        definition: What to search.
        dataset: Its images.
        mlruns: The folder of ledgers and of MLflow's own store.
        tries: Configurations of the user's own, as the next trials: values by name, on top of the
            baseline's.
        new: Start a new sweep whatever there is.
        warm_start: An earlier sweep, or "best"; see `earlier.recall`.
        reserve: Given the record, the seconds of the definition's minutes that are kept for what
            comes after the search.
        on_event: Told each event, after it was written.
        say: Told what a user should know, a line at a time.

    Returns:
        The record; `record.end` is "finished", "exhausted", "failed", "interrupted", or the limit
        that was reached: "flat", "minutes", "epochs", "quota", "disk" ("crashed" after an
        exception, which is raised).

    Raises:
        CnnSearchError: definition, ledger or tracking server are not as they should be; nothing
            was trained.
    """
    folder = None if new else find_sweep(mlruns, definition.name)
    while folder is None:
        named = sweeps_folder(mlruns) / f"{definition.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if named.exists():  # a second sweep in this second
            time.sleep(0.1)
        else:
            folder = named
    search = _Search(definition, dataset, folder, tries, reserve, on_event, say)
    if warm_start:
        search.warm_start(mlruns, warm_start)
    store = tracking.open_store(mlruns, definition.name, create=True)
    make_folder(folder)
    with hold(folder):
        return search.drive(store)


def check(definition: Definition, dataset: Dataset, tries: Sequence[Mapping[str, Any]] = ()) -> str:
    """Check a definition against its images as `run` does; return what a user should know.

    Raises:
        CnnSearchError: definition and images do not fit.
    """

    def nobody(*_: Any) -> None:
        pass

    search = _Search(definition, dataset, Path("unused"), tries, lambda record: 0.0, nobody, nobody)
    return search.too_few_points()


class _Search(Driver):
    """The search of a sweep; final."""

    job, which = "search", "trial"

    def __init__(
        self,
        definition: Definition,
        dataset: Dataset,
        folder: Path,
        tries: Sequence[Mapping[str, Any]],
        reserve: Callable[[Record], float],
        on_event: OnEvent,
        say: Say,
    ) -> None:
        setup = setup_of(definition, folder)
        super().__init__(folder, setup, dataset, definition.engine, on_event, say)
        self.definition, self.reserve = definition, reserve
        self.too_large = False
        self._undone: dict[int, Event] = {}  # epochs after which a kill was faster than "pruned"
        space = make_space(setup, dataset)
        self.whole = whole = declared(space)
        left = searched(definition, whole)
        self.oracle = Oracle(
            definition.oracle,
            left,
            objective=definition.objective,
            epochs=definition.training.epochs,
            trials=definition.trials,
            seed=definition.seed,
            costs=definition.costs,
        )
        direction = OBJECTIVES[definition.objective]
        self.pruner = Pruner(definition.pruner, direction, definition.training.epochs)
        self.baselines = list(baseline_values(space, definition.baselines).items())
        if definition.final:  # what is wrong there should not come out after the search
            baseline_values(space, definition.final.baselines)
        self.recipes = dict(space.recipe_values()) if definition.recipes else {}
        for name in list(self.recipes):
            if wrong := outside(left, self.recipes[name]):
                del self.recipes[name]
                say(f"recipe {name}: left out, as the space is without its {', '.join(wrong)}")
        self.tries = [complete(whole, self.baselines[0][1], values) for values in tries]
        space.fetch(left, self.besides())
        self.earlier: dict[str, Any] = {}  # the event of that name, until it is written
        self.first: list[Mapping[str, Any]] = []  # configurations of earlier sweeps

    @property
    def trials(self) -> dict[int, Trial]:
        return self.record.trials

    def warm_start(self, mlruns: Path, name: str) -> None:
        """Take from earlier sweeps what a new one can; one that goes on has done so already.

        Raises:
            DefinitionError: there is nothing to take, or the sweep began without.
        """
        if not (self.folder / "ledger.jsonl").exists():
            space = self.oracle.keras_tuner.get_space()
            self.earlier = recall(mlruns, name, self._header(), self.whole, space, self.besides())
        elif not read_record(self.folder / "ledger.jsonl").earlier:
            raise DefinitionError(
                f"--warm-start {name}: expected a new sweep; {self.folder.name} has begun without. "
                "Start another with --new, or leave it out."
            )

    def besides(self) -> list[Mapping[str, Any]]:
        """Return what is tried whatever the oracle says."""
        return [*dict(self.baselines).values(), *self.recipes.values(), *self.tries]

    def too_few_points(self) -> str:
        """Return that the space has fewer points than there are trials; else ""."""
        trials = self.definition.trials - len(self.baselines) - len(self.tries)
        points = size(self.oracle.keras_tuner.get_space(), trials)
        if self.definition.oracle.kind == "hyperband" or points >= trials:
            return ""
        return (
            f"note: the space has {points} points, fewer than the {self.definition.trials} trials"
        )

    def begin(self) -> bool:
        """Replay the ledger into the oracle, or begin a new one."""
        if self.record.header:
            self._check_same()
            self._replay()
            self._weigh()
            if self._is_over():
                return False
            self._know_speed()
            return True
        shown = self.dataset.train
        np.savez(
            self.folder / "samples.npz",
            images=shown.images[:SHOWN_IMAGES],
            labels=shown.labels[:SHOWN_IMAGES],
        )
        self.append("sweep", **self._header())
        if self.earlier:
            self._remember(self.append("earlier", **self.earlier))
        if few := self.too_few_points():
            self.say(few)
        self._know_speed()
        return True

    def _know_speed(self) -> None:
        """Have the seconds of an epoch predicted if a constraint needs it: as at the beginning."""
        if "epoch_seconds" not in self.definition.constraints:
            return
        if not self.record.speed:
            self.say("measuring a few networks for the constraint epoch_seconds ...")
            self.append("speed", **dataclasses.asdict(fit(probe(self.definition, self.dataset))))
        event = self.record.speed
        speed = Speed(tuple(event["weights"]), event["error"])
        self.setup = dataclasses.replace(self.setup, speed=speed)
        self.say(f"the seconds of an epoch are predicted within {speed.error:.0%}, by the median")

    def _remember(self, event: Event) -> None:
        """Tell the oracle what earlier sweeps found."""
        self.first = list(event["first"])
        for number, seen in enumerate(event["seen"], start=1):
            costs = seen["costs"]
            violation = self._violation(costs)
            self.oracle.tell(
                -number, seen["values"], seen["score"], costs=costs, violation=violation
            )
        if event["note"]:
            self.say(f"note: warm start from {', '.join(event['sweeps'])}: {event['note']}")

    def prepare(self) -> None:
        for number, event in self._undone.items():
            self.prune(self.record.trials[number], event)

    def over(self) -> str:
        definition, record = self.definition, self.record
        if definition.minutes is not None:
            spent = record.seconds + max(0.0, time.time() - record.last_time)
            if spent >= 60 * definition.minutes - self.reserve(record):
                return "minutes"
        if definition.epochs_total is not None and record.epochs >= definition.epochs_total:
            return "epochs"
        return "quota" if self.too_large else ""

    def next(self) -> Trial | None:
        """Return the next baseline, the user's own, or what the oracle asks for."""
        trials = self.record.trials
        ended = [trial.status for trial in trials.values() if trial.status in ENDED]
        if len(ended) >= GIVE_UP_AFTER and set(ended) == {"failed"}:
            if not self.running:  # one of those may not fail
                self.no_more = "failed"
            return None
        number = len(trials)
        if self.tries and number >= 1:
            return self._ask(number, "try", Ask(self.tries.pop(0)))
        taken = len(self.record.counted())
        if self.definition.oracle.kind != "hyperband" and taken >= self.definition.trials:
            if not self.running:  # one of those may be refused, and does not count then
                self.no_more = "finished"
            return None
        if self._is_flat():
            if not self.running:  # one of those may be better
                self.no_more = "flat"
            return None
        if set(ended[-MOST_REFUSED:]) == {"refused"} and len(ended) >= MOST_REFUSED:
            if not self.running:
                self.say(f"the last {MOST_REFUSED} configurations break [constraints]: too tight?")
                self.no_more = "exhausted"
            return None
        if self.baselines and not self.oracle.starts_with(self.baselines[0][1]):
            name, values = self.baselines.pop(0)
            return self._ask(number, "baseline", Ask(values), name)
        if self.recipes and number >= 1:
            name = next(iter(self.recipes))
            return self._ask(number, "recipe", Ask(self.recipes.pop(name)), recipe=name)
        if self.first:
            return self._ask(number, "earlier", Ask(dict(self.first.pop(0))))
        ask = self.oracle.ask(number)
        if ask is None:
            if not self.oracle.idle:
                self.no_more = "finished" if self.oracle.kind == "hyperband" else "exhausted"
            return None
        # grid asks for the baseline itself, as its defaults
        name = self.baselines.pop(0)[0] if self.baselines else ""
        return self._ask(number, "oracle", ask, name)

    def _is_flat(self) -> bool:
        """Return whether as many trials as [stop] says ended without a better one."""
        patience = self.definition.stop.patience
        ranking = self.record.ranking()
        if not (patience and ranking):
            return False
        later = [t for t in self.record.trials.values() if t.number > ranking[0].number]
        return sum(t.status in ("finished", "pruned", "failed") for t in later) >= patience

    def prunes(self, trial: Trial, event: Event) -> bool:
        value = event["metrics"][self.definition.objective]
        worse = self.pruner.report(trial.number, event["epoch"], value)
        # the book's model and the user's own are there to be compared with; a recipe's schedule
        # makes it slow at first: on Fashion-MNIST it was second of two after an epoch
        chosen = trial.source in ("oracle", "earlier")
        return worse and chosen and event["epoch"] < trial.epochs

    def ended(self, trial: Trial, event: Event) -> None:
        self._tell(event)
        self._tidy()
        self._weigh()

    def _weigh(self) -> None:
        if self.definition.disk_megabytes is not None:
            size = size_of(self.folder) - size_of(self.folder / IMAGES)
            self.too_large = size > 1e6 * self.definition.disk_megabytes

    def _tell(self, event: Event) -> None:
        """Tell oracle and pruner how a trial ended."""
        trial = self.record.trials[event["trial"]]
        curve = None
        # the baseline and the user's own are trained though they may break the constraints
        costs = event["costs"] if event["kind"] == "refused" else trial.costs
        if event["kind"] == "pruned":
            name = self.definition.objective
            epochs = range(1, event["epoch"] + 1)
            curve = {epoch: trial.curve[epoch][name] for epoch in epochs if epoch in trial.curve}
        self.oracle.tell(
            trial.number,
            trial.values,
            event.get("score"),
            curve=curve,
            costs=trial.costs,
            violation=self._violation(costs),
        )
        self.pruner.end(trial.number, event.get("score"))

    def _violation(self, costs: Mapping[Limit, float]) -> float:
        """Return how far a network is from being allowed, by as much as is known of its costs."""
        limits = {name: limit for name, limit in self.setup.limits.items() if name in costs}
        return sum(violations(costs, limits).values())

    def _ask(
        self, number: int, source: str, ask: Ask, baseline: str = "", recipe: str = ""
    ) -> Trial:
        # a promoted trial goes on with its parent's data order and augmentation
        parent = None if ask.parent is None else self.record.trials[ask.parent]
        drawn = int(np.random.SeedSequence([self.definition.seed, number, 1]).generate_state(1)[0])
        self.append(
            "ask",
            trial=number,
            values=ask.values,
            seed=parent.seed if parent else drawn % (2**31 - 1) + 1,
            epochs=ask.epochs or self.definition.training.epochs,
            parent=ask.parent,
            source=source,
            baseline=baseline,
            recipe=recipe,
            oracle=ask.oracle,
        )
        return self.record.trials[number]

    def _replay(self) -> None:
        """Ask and tell a fresh oracle everything that is on record, in its order."""
        for event, _ in read_events(self.ledger.path):
            if event["kind"] == "earlier":
                self._remember(event)
            elif event["kind"] == "ask":
                if event["baseline"]:
                    self.baselines = [b for b in self.baselines if b[0] != event["baseline"]]
                self.recipes.pop(event.get("recipe"), None)
                if event["source"] == "earlier":
                    self.first.remove(event["values"])
                if event["source"] == "oracle":
                    self.oracle.ask_again(event["trial"], event["values"], event["oracle"])
            elif event["kind"] == "epoch" and "trial" in event:
                if self.prunes(self.record.trials[event["trial"]], event):
                    self._undone[event["trial"]] = event
            elif event["kind"] in ENDINGS and "trial" in event:
                self._undone.pop(event["trial"], None)
                self._tell(event)
        tried = [t.values for t in self.record.trials.values() if t.source == "try"]
        self.tries = [values for values in self.tries if values not in tried]

    def _is_over(self) -> bool:
        """Return whether nothing is left to do, so that the sweep's answer stands."""
        minutes = self.definition.minutes
        spent = self.record.seconds + self.reserve(self.record)
        total = self.definition.epochs_total
        late = minutes is not None and spent >= 60 * minutes
        if late or self.too_large or (total is not None and self.record.epochs >= total):
            # one that was cut short is yet to choose its champion
            return self.record.end not in (*OPEN_ENDS, "disk")
        trials = self.record.trials.values()
        if self.tries or any(t.status in ("waiting", "running", "stopped") for t in trials):
            return False
        taken = len(self.record.counted())
        more = self.definition.oracle.kind != "hyperband" and taken < self.definition.trials
        return (
            self._is_flat()
            or self.record.end in ("exhausted", "failed")
            or (self.record.end == "finished" and not more)
        )

    def finish(self) -> None:
        """Make the best trial the champion."""
        self._tidy()  # a pruned trial may have left a checkpoint while it stopped
        choice = self.record.choice(self.record.ranking())
        if self.ending != "interrupted" and choice and choice.number != self.record.champion:
            self.append("champion", trial=choice.number)

    def _tidy(self) -> None:
        """Delete what nobody needs: checkpoints of what has ended, the weights of losers."""
        trials = self.record.trials.values()
        unended = [t for t in trials if t.status not in ENDED]
        needed = {t.number for t in unended} | {t.parent for t in unended}
        needed |= self.oracle.may_promote()
        best = {trial.number for trial in self.record.kept(self.definition.keep_models)}
        for trial in trials:
            folder = self.setup.trial_folder(trial.number)
            if trial.number not in needed:
                (folder / "checkpoint.npz").unlink(missing_ok=True)
            if trial.status == "finished" and trial.number not in best:
                (folder / "model.keras").unlink(missing_ok=True)

    def _header(self) -> dict[str, Any]:
        data, definition = self.dataset, self.definition
        return {
            "sweep": self.folder.name,
            "definition": definition.as_json(),
            "digest": digest(definition.as_json()),
            "space": fingerprint(self.whole),
            "direction": OBJECTIVES[definition.objective],
            "data": {
                "name": data.name,
                "source": data.source,
                "digest": data.digest,
                "class_names": list(data.class_names),
                "input_shape": list(data.input_shape),
                "train_images": len(data.train.labels),
                "validation_images": len(data.validation.labels),
            },
        }

    def _check_same(self) -> None:
        """Refuse to go on with another definition or other images."""
        header = self.record.header
        now, before = self.definition.as_json(), from_record(header["definition"]).as_json()
        if digest(now) != digest(before):
            changed = [
                line for line in differences(before, now) if line.split(":")[0] not in NOT_IN_DIGEST
            ]
            raise LedgerError(
                f"{self.folder.name}: expected the definition it was started with; received "
                f"{'; '.join(changed)}. Start a new sweep with --new, or leave the change out."
            )
        self.check_space(self.whole)
        self.check_images()
