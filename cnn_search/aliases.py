"""Aliases: who is `champion` and `challenger`, how they came to it, and the way back.

Every move of an alias is one tag of the registered model, `alias.0001` and so on, written before
the alias is set: whoever dies in between finds the decision on record, and makes no other. When it
moved is by the clock of who moved it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TypedDict

# first of all that import mlflow: it says how mlflow is to behave
from cnn_search.store import Store, first_line  # isort: skip
import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from cnn_search.errors import TrackingError
from cnn_search.evidence import MARK

CHAMPION, CHALLENGER = "champion", "challenger"
PROMOTION = "promotion"  # on a version: what became of it, and why
HISTORY = "alias."  # and a number, on the registered model


class Challenge(TypedDict):
    """One use of the gate, against a version; the `number`-th on these test images, from 1.

    `difference` and its lower `bound` are shares of images.
    """

    against: int
    test_digest: str  # the first 16 characters
    number: int
    alpha: float
    difference: float
    bound: float


# "from" is a keyword
Move = TypedDict(
    "Move",
    {
        "alias": str,
        "from": int | None,
        "to": int,
        "evidence": str,
        "at": str,
        "by": str,
        "how": str,  # "evidence", "force" or "rollback"
        "why": str,
        "challenge": Challenge | None,
    },
)


def read_history(model: RegisteredModel) -> list[Move]:
    """Return every move of a registered model's aliases, the oldest first."""
    return [json.loads(model.tags[key]) for key in _history_keys(model)]


def _history_keys(model: RegisteredModel) -> list[str]:
    keys = [k for k in model.tags if k.startswith(HISTORY) and k[len(HISTORY) :].isdigit()]
    return sorted(keys, key=lambda k: int(k[len(HISTORY) :]))


def write_move(
    client: mlflow.MlflowClient,
    version: ModelVersion,
    alias: str,
    *,
    by: str,
    how: str,
    why: str,
    challenge: Challenge | None = None,
) -> Move:
    """Write a move into the history, before it is made."""
    model = client.get_registered_model(version.name)  # by now somebody may have made another one
    before = model.aliases.get(alias)
    move: Move = {
        "alias": alias,
        "from": None if before is None else int(before),
        "to": int(version.version),
        "evidence": version.tags.get("evidence", "unknown"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": by,
        "how": how,
        "why": why,
        "challenge": challenge,
    }
    keys = _history_keys(model)
    number = int(keys[-1][len(HISTORY) :]) + 1 if keys else 1
    client.set_registered_model_tag(model.name, f"{HISTORY}{number:04d}", json.dumps(move))
    return move


def set_alias(client: mlflow.MlflowClient, model: RegisteredModel, move: Move) -> None:
    """Set the alias; a challenger that became champion is challenger no more."""
    client.set_registered_model_alias(model.name, move["alias"], str(move["to"]))
    challenger = model.aliases.get(CHALLENGER)
    if move["alias"] == CHAMPION and challenger is not None and int(challenger) == move["to"]:
        client.delete_registered_model_alias(model.name, CHALLENGER)


def tell(name: str, move: Move, champion: str | None) -> str:
    """Return a move in words; of a challenger, with the version that stays champion."""
    if move["alias"] == CHAMPION:
        return f"{name} version {move['to']} became champion: {move['why']}"
    return (
        f"{name} version {move['to']} became challenger, champion stays version {champion}: "
        f"{move['why']}. To promote it all the same: python -m cnn_search.registry promote {name} "
        f"--version {move['to']} --force"
    )


def aliases_and_history(store: Store, name: str) -> tuple[dict[str, int], list[Move]]:
    """Return who holds a model's aliases, and every move of them, the oldest first.

    Raises:
        TrackingError: there is no such model.
    """
    model = _open_model(store.client(), name)
    return {alias: int(number) for alias, number in model.aliases.items()}, read_history(model)


def rollback(store: Store, name: str) -> Move:
    """Give the alias `champion` back to the version that had it before, and record it.

    Versions that were deleted since are passed over.

    Raises:
        TrackingError: there is no such model, or none had it before.
    """
    client = store.client()
    model = _open_model(client, name)
    present = model.aliases.get(CHAMPION)
    for number in reversed(_held(read_history(model))):
        version = None if str(number) == str(present) else _version(client, name, number)
        if version is not None:
            why = f"rolled back from version {present or 'none'}"
            return _move_by_hand(client, model, version, "rollback", why)
    raise TrackingError(
        f"registry: expected a version of {name} that was champion before; its history has none. "
        f"Another one: python -m cnn_search.registry promote {name} --version N --force"
    )


def _held(moves: list[Move]) -> list[int]:
    """Return which versions were champion one after another, without what was rolled back."""
    held: list[int] = []
    for move in moves:
        if move["alias"] != CHAMPION:
            continue
        before, to = move["from"], move["to"]
        if move["how"] == "rollback":
            while held and held[-1] != to:
                held.pop()
        elif before is not None and held[-1:] != [before]:
            held.append(before)  # got there before there was a history, or in the UI
        if held[-1:] != [to]:
            held.append(to)
    return held


def promote(store: Store, name: str, number: int | None, *, force: bool) -> Move | None:
    """Make a version champion without the evidence for it, and record that it was forced.

    Args:
        store: Where.
        name: Of the registered model.
        number: Which version; None for the challenger.
        force: Without it nothing is done, and the error says why the version is not promoted.

    Returns:
        The move; None if the version is champion already.

    Raises:
        TrackingError: there is no such version, it is of no sweep, or it was not forced.
    """
    client = store.client()
    model = _open_model(client, name)
    if number is None and CHALLENGER not in model.aliases:
        raise TrackingError(
            f"registry: expected a challenger of {name}; there is none. Say which version: "
            f"--version N; those that had an alias: python -m cnn_search.registry history {name}"
        )
    number = int(model.aliases[CHALLENGER]) if number is None else number
    version = _version(client, name, number)
    if version is None or MARK not in version.tags:
        raise TrackingError(
            f"registry: expected a version of {name} that a sweep registered; received {number}. "
            f"Those that had an alias: python -m cnn_search.registry history {name}"
        )
    if str(model.aliases.get(CHAMPION)) == str(number):
        return None
    if not force:
        told = version.tags.get(PROMOTION, "it was registered by an older version of cnn_search")
        raise TrackingError(
            f"registry: expected --force, since evidence is judged once, when a version is "
            f"registered; received none. On record: {told}."
        )
    return _move_by_hand(client, model, version, "force", "forced, not by evidence")


def _move_by_hand(
    client: mlflow.MlflowClient, model: RegisteredModel, version: ModelVersion, how: str, why: str
) -> Move:
    by = {"force": "registry promote --force", "rollback": "registry rollback"}[how]
    move = write_move(client, version, CHAMPION, by=by, how=how, why=why)
    set_alias(client, model, move)
    told = f"{tell(model.name, move, None)} ({move['at']})"
    client.set_model_version_tag(model.name, version.version, PROMOTION, told)
    return move


def _open_model(client: mlflow.MlflowClient, name: str) -> RegisteredModel:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        raise TrackingError(
            f"registry: expected the name of a registered model; received {name!r} "
            f"({first_line(error)}). Those there are: python -m cnn_search.registry list"
        ) from None


def _version(client: mlflow.MlflowClient, name: str, number: int) -> ModelVersion | None:
    """Return a version, None if there is none, or it was deleted."""
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
