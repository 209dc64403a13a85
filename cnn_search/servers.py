"""Servers: MLflow's own, on loopback, for as long as a command of ours runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnn_search.errors import TrackingError
from cnn_search.store import without_secrets

HOST = "127.0.0.1"
PATIENCE = 180  # seconds until it answers: TensorFlow's import on a busy machine
ENDS = (signal.SIGTERM, signal.SIGHUP)
SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def running(
    arguments: Sequence[str], port: int, path: str, uri: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow ARGUMENTS` until the block ends; the block begins when it answers.

    Args:
        arguments: Without host and port.
        port: To listen on.
        path: Of a page that answers when the server is up.
        uri: The tracking URI, handed over in the environment, where others do not see it.

    Raises:
        TrackingError: the port is taken; the server ended, or did not answer in three minutes.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            trial.bind((HOST, port))
        except OSError as error:
            raise TrackingError(
                f"--port: expected one that can be listened on; received {port}: {error.strerror}. "
                "Leave it out for a free one."
            ) from None
    # a terminate, or a terminal that is closed, is an interrupt here: the server is to end with us
    heeded = [n for n in ENDS if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # uvicorn
    environment = os.environ | SETTINGS | {"PATH": tools}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_BACKEND_STORE_URI": uri}
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            if not _answers(process, f"http://{HOST}:{port}{path}"):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                raise TrackingError(
                    f"mlflow {arguments[0]}: expected it to answer on port {port}; it said "
                    f"{without_secrets(said[-1])[:200]}. Try another --port."
                )
            yield process
        finally:
            for number in (*before, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            _end(process)
            for number, handler in {signal.SIGINT: signal.default_int_handler, **before}.items():
                signal.signal(number, handler)


def wait(process: subprocess.Popen[bytes]) -> None:
    """Wait until Ctrl-C.

    Raises:
        TrackingError: the server ended by itself.
    """
    try:
        process.wait()
    except KeyboardInterrupt:
        return
    raise TrackingError(
        "mlflow: expected the server to run until Ctrl-C; it ended by itself. Start it again."
    )


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy of the user's
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), direct.open(url, timeout=5):
            return True
        time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
