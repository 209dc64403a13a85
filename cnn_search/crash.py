"""Crashes: the traceback that a process leaves in a file when it dies in native code.

SIGSEGV, SIGABRT and their like are TensorFlow's or a library's; a SIGKILL leaves nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator
from pathlib import Path

LONGEST = 4000  # characters of a traceback that are kept


@contextlib.contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write the traceback of a crash of this process into a file; without one, none is left."""
    before = faulthandler.is_enabled()
    with open(path, "w") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before and sys.__stderr__ is not None:  # sys.stderr may be no file
                faulthandler.enable(sys.__stderr__)
            path.unlink(missing_ok=True)


def read_crash(path: Path) -> str:
    """Return the traceback that a crash left, without the list of modules; empty if none did."""
    try:
        return path.read_text(errors="replace").partition("\nExtension modules:")[0][:LONGEST]
    except OSError:
        return ""
