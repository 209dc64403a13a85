"""Colophon: the sections about what failed, and about how each number can be had again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnn_search.report.formats import command_of, when
from cnn_search.report.parts import Section, Table

Facts = Mapping[str, Any]


def failures(facts: Facts) -> Section | None:
    """Return what failed or was stopped, and why."""
    rows = facts["failures"]
    if not rows:
        return None
    table = Table(
        ["", "status", "reason", "message", "#epochs", "#attempts"],
        [
            [row["name"], row["status"], row["reason"], row["message"][:300]]
            + [str(row["epochs"]), str(row["attempts"])]
            for row in rows
        ],
    )
    return Section("failures", "What failed or was stopped", [], [table])


def reproduction(facts: Facts) -> Section:
    """Return how each number can be had again."""
    found, data = facts["setting"], facts["setting"]["data"]
    definition = found["definition"]
    name = definition["name"]
    last: dict[str, Any] = found["sessions"][-1] if found["sessions"] else {}
    machine, git = last.get("machine") or {}, last.get("git") or {}
    versions = ", ".join(f"{k} {v}" for k, v in (last.get("versions") or {}).items())
    oracle, training = definition["oracle"], definition["training"]
    rows = [
        ["sweep", found["sweep"]],
        ["data", f"{data['name']}: {data['source']}"],
        ["digest of the training part", data["digest"]],
        ["digest of the test part", found["test_digest"] or "not read"],
        ["images", f"{data['train_images']:,} trained on, {data['validation_images']:,} validated"],
        ["image size", " × ".join(str(side) for side in data["input_shape"])],
        ["digest of the definition", found["definition_digest"]],
        ["seed, oracle", f"{definition['seed']}, {oracle['kind']}"],
        ["epochs, weights kept", f"{training['epochs']}, {training['weights']}"],
        ["threads of a training", str(found["threads"])],
        ["machine", ", ".join(str(value) for value in machine.values())],
        ["versions", versions],
        ["git commit", _commit(git)],
    ]
    sessions, before = [], None
    for session in found["sessions"]:
        now = session["versions"], session["machine"], session["git"]
        sessions.append(
            [
                when(session["time"]),
                session["job"],
                command_of(session["command"] or ""),
                _commit(session["git"] or {}),
                "" if before in (None, now) else "versions, machine or commit changed",
            ]
        )
        before = now
    return Section(
        "reproduction",
        "How to have each number again",
        [
            "Validation scores, curves, importance and claims come from the sessions of job "
            "search; test scores, latencies, confusion and calibration from those of job final. "
            "The same command with the same versions, threads and machine gives the same curves to "
            "the last digit; the seconds never repeat."
        ],
        [
            Table(["", ""], rows, "What it was made with (last session)"),
            Table(["began (UTC)", "job", "command", "commit", ""], sessions, "Sessions"),
        ],
        [
            f"{found['command']}  # search, curves, importance, claims",
            f"python -m cnn_search.score {name}  # all about the test part, and latencies",
            f"python -m cnn_search.replay {name} --trial 0  # one trial again, compared",
            f"python -m cnn_search.report {name}  # this page; or with --ledger FILE",
        ],
    )


def _commit(git: Mapping[str, Any]) -> str:
    commit = str(git.get("commit") or "not in a repository")
    return commit + (" with uncommitted changes" if git.get("dirty") else "")
