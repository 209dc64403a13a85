"""Promotion: the gate that a new version passes to become `champion`; else it is `challenger`.

A version is judged once, when it is registered, against the present champion:

    champion's evidence     version's    it becomes champion
    there is none           any          yes
    validation              test         yes
    validation              validation   unless that is another sweep's, over the same images, and
                                         better
    test                    validation   no
    test, same sweep and    test         if it has more seeds: nothing new is claimed, the same is
    same configuration                   known better, so it is no challenge and uses up nothing
    test, same images       test         if `statistics.gate` lets it, at an alpha that falls with
                                         each challenge ever made on these images
    test, other images      test         no: they do not compare image by image
    unknown                 any          no

The decision is on record as a move of an alias (see `aliases`) before the alias is set; the tag
`promotion` of the version says that all was done, and why.
"""

from __future__ import annotations

from typing import NamedTuple

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import all_pages  # isort: skip
import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from cnn_search import statistics
from cnn_search.aliases import (
    CHALLENGER,
    CHAMPION,
    PROMOTION,
    Challenge,
    read_history,
    set_alias,
    tell,
    write_move,
)
from cnn_search.errors import TrackingError
from cnn_search.evidence import MARK, read_scores


class Verdict(NamedTuple):
    """What a version has to expect, and why."""

    promoted: bool
    why: str
    challenge: Challenge | None = None


def decide(client: mlflow.MlflowClient, version: ModelVersion, direction: str) -> str:
    """Give a new version its alias; say which, and why. A decision on record is not made again.

    Args:
        client: Of the store.
        version: With the tags of `evidence.write_tags`.
        direction: Of its objective, "max" or "min".
    """
    if told := version.tags.get(PROMOTION):
        return str(told)
    model = client.get_registered_model(version.name)
    moves = read_history(model)
    number = int(version.version)
    move = next((m for m in moves if m["to"] == number and m["how"] == "evidence"), None)
    if move is None:
        verdict = judge(client, version, _champion(client, model), direction)
        alias = CHAMPION if verdict.promoted else CHALLENGER
        move = write_move(
            client,
            version,
            alias,
            by=version.tags[MARK],
            how="evidence",
            why=verdict.why,
            challenge=verdict.challenge,
        )
        moves.append(move)
    if move is [m for m in moves if m["alias"] == move["alias"]][-1]:  # none came after it
        set_alias(client, model, move)
    told = tell(version.name, move, model.aliases.get(CHAMPION))
    client.set_model_version_tag(version.name, version.version, PROMOTION, told)
    return told


def judge(
    client: mlflow.MlflowClient,
    version: ModelVersion,
    champion: ModelVersion | None,
    direction: str,
) -> Verdict:
    """Return whether a new version is to take the champion's place; the table above."""
    if champion is None:
        return Verdict(True, "there was none")
    if int(champion.version) == int(version.version):  # registered before there was a history
        return Verdict(True, "it was before")
    held = f"version {champion.version}"
    known, new = champion.tags.get("evidence"), version.tags["evidence"]
    if MARK not in champion.tags or known not in ("validation", "test"):
        return Verdict(False, f"nothing tells what {held} was judged by, so they do not compare")
    if known == "validation" and new == "test":
        return Verdict(True, f"it is scored on the test part, {held} has validation scores alone")
    if known == "validation":
        return _judge_validation(version, champion, direction)
    if new == "validation":
        why = f"{held} was scored on the test part, and validation alone does not displace that"
        return Verdict(False, f"{why}; the final scoring may")
    same = (MARK, "configuration")
    if all(champion.tags.get(tag) == version.tags.get(tag) for tag in same):
        more = int(version.tags["seeds"]) > int(champion.tags["seeds"])
        seeds = f"{version.tags['seeds']} seeds, {champion.tags['seeds']} before"
        return Verdict(more, f"it is the configuration of {held}: {seeds}")
    return _challenge(client, version, champion)


def _judge_validation(version: ModelVersion, champion: ModelVersion, direction: str) -> Verdict:
    held, objective = f"version {champion.version}", version.tags["objective"]
    if champion.tags[MARK] == version.tags[MARK]:
        return Verdict(True, f"it is the best of its sweep, as {held} was before")
    if any(champion.tags.get(t) != version.tags.get(t) for t in ("objective", "data_digest")):
        return Verdict(True, f"{held} has validation scores alone, of other images or objective")
    ours, theirs = version.tags[objective], champion.tags[objective]
    gain = float(ours) - float(theirs)
    stays = gain < 0 if direction == "max" else gain > 0
    why = f"its {objective} is {ours}, that of {held}, of {champion.tags[MARK]}, {theirs}"
    return Verdict(not stays, why)


def _challenge(
    client: mlflow.MlflowClient, version: ModelVersion, champion: ModelVersion
) -> Verdict:
    """Compare two scored versions image by image; count it as a challenge if they compare."""
    held, digest = f"version {champion.version}", version.tags["test_digest"]
    if champion.tags.get("test_digest") != digest:
        why = f"{held} was scored on other test images, so they do not compare image by image"
        return Verdict(False, why)
    try:
        ours, theirs = (read_scores(client, one) for one in (version, champion))
        number = count_challenges(client, digest) + 1
        gate = statistics.gate(ours, theirs, number)
    except (TrackingError, ValueError) as error:
        return Verdict(False, f"{error}, so they do not compare")
    if gate.bound is None:
        return Verdict(False, f"one seed, of it or of {held}, does not tell how much seeds differ")
    challenge: Challenge = {
        "against": int(champion.version),
        "test_digest": digest[:16],
        "number": number,
        "alpha": gate.alpha,
        "difference": gate.difference.mean,
        "bound": gate.bound,
    }
    why = (
        f"on the same {ours.shape[1]:,} test images it is {100 * gate.difference.mean:+.2f} points "
        f"from {held}, lower bound {100 * gate.bound:+.2f} (alpha {gate.alpha:.3g}, challenge "
        f"{number} on these images), so it is {'' if gate.passed else 'not shown to be '}better"
    )
    return Verdict(gate.passed, why, challenge)


def count_challenges(client: mlflow.MlflowClient, test_digest: str) -> int:
    """Return how often these test images were used to challenge a champion in this registry.

    Whatever the model's name: the images are used up all the same. A registered model that is
    deleted takes its count along.
    """
    models = all_pages(client.search_registered_models, max_results=1000)
    challenges = [move["challenge"] for model in models for move in read_history(model)]
    return sum(c is not None and c["test_digest"] == test_digest[:16] for c in challenges)


def _champion(client: mlflow.MlflowClient, model: RegisteredModel) -> ModelVersion | None:
    number = model.aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(model.name, str(number))
