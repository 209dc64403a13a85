"""Surroundings: the versions, machine, git commit and command that a session runs on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "cnn-search",
    "keras",
    "keras-tuner",
    "mlflow",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "jax",
    "torch",
)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def surroundings() -> dict[str, Any]:
    """Return what a session runs on: versions, machine, git commit, command."""
    return {
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "git": git_state(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "pid": os.getpid(),
    }


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the folder's git repository; empty outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def usable_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
