"""The dask engine: trials in worker processes, of this machine or of a cluster, one in each.

What dask 2026.8 does otherwise than one would like was found by running it; a comment says so.
A task is pinned to a worker of the engine's choice, under a key of its own (dask returns the
cached result of equal arguments), and is never rerun by dask: attempts are the driver's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dask
import distributed

from cnn_search import backend, worker
from cnn_search.datasets import Dataset
from cnn_search.definition import EngineTable
from cnn_search.engines import Engine
from cnn_search.errors import EngineError, first_line
from cnn_search.ledger import ENDINGS, IMAGES
from cnn_search.surroundings import versions
from cnn_search.training import Setup, Stop, Task

DEFAULTS = {  # below "distributed"; the user's own dask configuration and DASK_... variables win
    "scheduler": {"allowed-failures": 0, "worker-ttl": "60s"},
    # it would spill, or pause a worker that trains
    "worker": {
        "memory": {"target": False, "spill": False, "pause": False, "terminate": 1.0},
        "profile": {"enabled": False},  # 100 times a second, beside a training
    },
    # a worker that is slow to be restarted would lose its nanny for good
    "deploy": {"lost-worker-timeout": "1 day"},
    "admin": {"low-level-log-length": 1000, "tick": {"interval": "500ms"}},
}
START_SECONDS = 60  # for the first worker
PATIENCE_SECONDS = 300  # without any worker, before the sweep ends


@dataclasses.dataclass
class _Member:
    """A worker that may be given trials."""

    pid: int
    threads: int
    trials: int = 0


@dataclasses.dataclass
class _Running:
    """An attempt in the hands of a worker."""

    task: Task
    address: str
    future: Any = None
    seen: int = 0


class DaskEngine(Engine):
    """Trains in worker processes; final.

    Args:
        table: How many workers, or whose; what a trial may take.
        setup: What all trials share; its folder must be seen by every worker at the same path.
        dataset: Its images; the workers get train and validation as files of the sweep's folder,
            mapped into their memory.
        say: Told what a user should know, a line at a time.
    """

    def __init__(
        self, table: EngineTable, setup: Setup, dataset: Dataset, say: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._table, self._setup, self._dataset, self._say = table, setup, dataset, say
        self._count = 1 if table.scheduler else table.workers or 1
        self._topic = f"cnn_search-{uuid.uuid4().hex}"
        self._topics = {
            self._topic: self._on_message,
            "all": self._on_membership,
            "scheduler": self._on_lost,
            "worker-restart-memory": self._on_memory,
        }
        self._lock = threading.RLock()  # events come in dask's threads
        self._members: dict[str, _Member] = {}
        self._newcomers: list[str] = []
        self._running: dict[str, _Running] = {}
        self._reasons: dict[str, str] = {}  # why a worker is about to be removed, by its address
        self._kills = _kernel_kills()
        self._seen_at = time.monotonic()
        self._client: Any = None
        self._connection: Any = None  # to the scheduler; another object after it was lost
        self._cluster: Any = None

    def start(self) -> None:
        try:
            self._begin()
        except EngineError:
            self.close(wait=False)
            raise

    def _begin(self) -> None:
        try:
            worker.write_images(self._setup.folder / IMAGES, self._dataset)
        except OSError as error:
            raise EngineError(
                f"engine: expected space for a copy of the images in {self._setup.folder}; "
                f"received {first_line(error)}. Make space, then the same command goes on; "
                "--workers 0 makes no copy."
            ) from None
        try:
            address = self._table.scheduler or self._start_workers()
            self._client = distributed.Client(  # type: ignore[no-untyped-call]
                address, timeout=START_SECONDS, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:
            raise EngineError(
                f"engine: expected dask's scheduler at {self._table.scheduler}; received "
                f"{first_line(error)}. Start it (docs/cluster.md), or pass --workers."
            ) from None
        self._listen()
        try:
            self._client.wait_for_workers(self._count, timeout=START_SECONDS)
            self._admit(self._client.nthreads(), refuse=True)
        except TimeoutError:
            raise EngineError(
                f"engine: expected a worker at {address} within {START_SECONDS} s; there is none. "
                "Start workers (docs/cluster.md)."
            ) from None

    def _listen(self) -> None:
        """Have the scheduler tell what happens."""
        connection = self._client.scheduler_comm
        for topic, handler in self._topics.items():
            self._client.subscribe_topic(topic, handler)
        self._connection = connection

    def _is_connected(self) -> bool:
        """Return whether the scheduler is there; if it was lost, ask the new one who is there.

        Dask connects again by itself, to the same address. But a scheduler that was started anew
        knows nobody, tells nothing unless it is asked to, and nothing of workers that have gone.

        Raises:
            EngineError: dask has given up.
        """
        if self._client.status == "closed":
            raise EngineError(
                f"engine: expected dask's scheduler at {self._table.scheduler}; the connection was "
                f"lost, and did not come back in {START_SECONDS} s. Start it (docs/cluster.md); "
                "the same command goes on."
            )
        if self._client.status != "running" or self._client.scheduler_comm is None:
            return False
        if self._client.scheduler_comm is not self._connection:
            try:
                self._listen()
                here = self._client.nthreads()
            except OSError:  # lost again
                self._connection = None
                return False
            with self._lock:
                self._members = {a: m for a, m in self._members.items() if a in here}
                self._newcomers += [address for address in here if address not in self._members]
        return True

    def _start_workers(self) -> Any:
        """Start a scheduler and workers on this machine's loopback; return the cluster."""
        dask.config.update_defaults({"distributed": DEFAULTS})
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is an event
        table, count = self._table, self._count
        megabytes = table.max_megabytes or distributed.system.MEMORY_LIMIT // count // 10**6
        options = {
            "nthreads": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": megabytes * 10**6,
            "silence_logs": logging.CRITICAL,
        }
        spec: dict[int, Any] = {
            n: {"cls": distributed.Nanny, "options": options} for n in range(count)
        }
        if table.gpus:
            for n, device in enumerate(assign_devices(devices(), table.gpus, count)):
                seen = {"CUDA_VISIBLE_DEVICES": device}
                own = {"resources": {"GPU": table.gpus}, "env": seen}
                spec[n] = {"cls": distributed.Nanny, "options": {**options, **own}}
        scheduler = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
        self._cluster = distributed.SpecCluster(  # type: ignore[no-untyped-call]
            spec,
            scheduler={"cls": distributed.Scheduler, "options": scheduler},
            silence_logs=logging.CRITICAL,
        )
        return self._cluster

    def slots(self) -> int:
        if not self._is_connected():
            return 0
        self._renew()
        newcomers, self._newcomers = self._newcomers, []
        if newcomers:
            self._admit(newcomers, refuse=False)
        if self._members:
            self._seen_at = time.monotonic()
        elif time.monotonic() - self._seen_at > PATIENCE_SECONDS:
            raise EngineError(
                f"engine: expected workers; the last one left {PATIENCE_SECONDS} s ago, and none "
                "came back. Start workers (docs/cluster.md); the same command goes on."
            )
        return len(self._members)

    def submit(self, task: Task) -> None:
        key = f"{self._setup.folder.name}-{task.trial}-{task.attempt}-{uuid.uuid4().hex[:8]}"
        while True:
            with self._lock:
                if free := self._free():
                    address = min(free, key=lambda a: free[a].trials)
                    running = self._running[key] = _Running(task, address)
                    break
            time.sleep(0.1)  # one that was counted died in this moment
            self.slots()
        member = free[address]
        member.trials += 1
        setup = {**dataclasses.asdict(self._setup), "folder": str(self._setup.folder.resolve())}
        running.future = self._client.submit(
            worker.attempt,
            key,
            self._topic,
            {**dataclasses.asdict(task), "threads": member.threads},
            setup,
            backend.describe()["backend"],
            key=key,
            workers=[address],
            resources={"GPU": self._table.gpus} if self._table.gpus else None,
            pure=False,
            retries=0,
        )
        running.future.add_done_callback(lambda future: self._on_end(key, future))

    def _free(self) -> dict[str, _Member]:
        with self._lock:
            busy = {running.address for running in self._running.values()}
            return {a: m for a, m in self._members.items() if a not in busy}

    def stop(self, when: Stop, trial: int | None = None) -> None:
        with self._lock:
            told = {k: r for k, r in self._running.items() if trial in (None, r.task.trial)}
        for key, running in told.items():
            # not waited for: the worker may be suspended, or gone
            arguments = [worker.ask_to_stop, key, when]
            options = {"workers": [running.address], "on_error": "ignore"}
            _aside(self._client.run, *arguments, **options)

    def kill(self, trial: int) -> None:
        with self._lock:
            key = next((k for k, r in self._running.items() if r.task.trial == trial), None)
            if key is None:  # it ended in this moment
                return
            address = self._running.pop(key).address
            self._members.pop(address, None)
        self._restart(address)

    def close(self, wait: bool) -> None:
        if self._cluster is not None and not wait:
            for member in self._members.values():
                _kill_process(member.pid)
        if self._client is not None:
            with contextlib.suppress(Exception):  # the search is whole, whatever dask still does
                for topic in self._topics:
                    self._client.unsubscribe_topic(topic)
                self._client.close(timeout=5)
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=10)
        self._members.clear()  # their process numbers may be others' from now on
        shutil.rmtree(self._setup.folder / IMAGES, ignore_errors=True)

    # Workers

    def _admit(self, addresses: Iterable[str], refuse: bool) -> None:
        """Take workers in that can do what is asked; others are refused, or named and left out.

        Raises:
            EngineError: one cannot.
        """
        addresses = list(addresses)
        told = self._client.run(
            worker.enlist,
            str(self._setup.folder.resolve()),
            self._cluster is not None,
            workers=addresses,
            on_error="return",
        )
        here = self._client.scheduler_info(n_workers=-1)["workers"]
        hosts = Counter(known["host"] for known in here.values())
        for address in addresses:
            if address not in here or address not in told:
                continue  # it is gone already
            problem = self._problem(told[address], here[address])
            if problem and refuse:
                raise EngineError(f"engine: worker {address}: {problem}")
            if problem:
                self._say(f"warning: worker {address} is left out: {problem}")
                continue
            share = max(1, told[address]["cores"] // hosts[here[address]["host"]])
            # those of `backend.prepare`: in the driver, of workers of ours, or in the worker
            usual = backend.describe() if self._cluster is not None else told[address]["keras"]
            threads = self._table.threads or usual.get("threads", share)
            self._members[address] = _Member(told[address]["pid"], threads)

    def _problem(self, told: Any, known: dict[str, Any]) -> str:
        """Return why a worker cannot be given trials; empty if it can."""
        if isinstance(told, BaseException):
            return (
                f"expected it to import cnn_search; received {type(told).__name__}: {told}. "
                "Install the same version there."
            )
        if known["nthreads"] != 1:
            return (
                f"expected 1 thread, as one trial runs in a process at a time; received "
                f"{known['nthreads']}. Start it with --nthreads 1 (and --nworkers for more)."
            )
        if not told["sees"]:
            return (
                f"expected it to see {self._setup.folder.resolve()}; it does not. Mount the folder "
                "there at the same path, or pass --mlruns of one that all machines share."
            )
        mine = versions()
        other = [f"{n} {v}" for n, v in mine.items() if told["versions"].get(n) != v]
        if other:
            theirs = ", ".join(f"{n} {v}" for n, v in told["versions"].items())
            return f"expected {', '.join(other)} as here; received {theirs}. Install the same."
        keras, name = told["keras"], backend.describe()["backend"]
        wanted = {"backend": name, "threads": self._table.threads or keras.get("threads")}
        if keras and keras != wanted:
            return (
                f"expected {wanted}; it has trained another sweep, with {keras}, and keeps that. "
                "Start it anew."
            )
        if self._table.gpus > known["resources"].get("GPU", 0):
            return (
                f"expected a resource GPU of {self._table.gpus:g}; received "
                f"{known['resources'].get('GPU', 0):g}. Start it with --resources GPU=1."
            )
        return ""

    def _renew(self) -> None:
        """Replace the processes of worn workers that are free; the fresh ones join later."""
        for address, member in self._free().items():
            if member.trials >= self._table.renew_after:
                with self._lock:
                    self._members.pop(address, None)
                _aside(self._restart, address)

    def _restart(self, address: str) -> None:
        try:
            self._client.restart_workers([address], timeout=START_SECONDS)
        except Exception:  # a cluster's, without a nanny: it goes on as it is
            self._newcomers.append(address)

    # What dask tells, in threads of its own

    def _on_message(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        with self._lock:
            running = self._running.get(message["key"])
            # a gap means that the connection was down: the rest comes with the result
            if running is not None and message["n"] == running.seen:
                self._pass_on(message, running)

    def _pass_on(self, message: dict[str, Any], running: _Running) -> None:
        running.seen += 1
        if message["kind"] in (*ENDINGS, "stopped"):
            del self._running[message["key"]]
        self._put(running, message["kind"], message["fields"])

    def _put(self, running: _Running, kind: str, fields: dict[str, Any]) -> None:
        task = running.task
        self.events.put((kind, {"trial": task.trial, "attempt": task.attempt, **fields}))

    def _on_membership(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        if told.get("action") == "add-worker":
            self._newcomers.append(told["worker"])
            self.events.put(("joined", {}))
        elif told.get("action") == "remove-worker":
            with self._lock:
                self._members.pop(told["worker"], None)
                here = [k for k, r in self._running.items() if r.address == told["worker"]]
                for key in here:
                    self._die(key, self._reasons.pop(told["worker"], "died"))

    def _on_lost(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        if told.get("action") == "worker-ttl-timed-out":
            self._reasons |= dict.fromkeys(told["workers"], "lost")

    def _on_memory(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        self._reasons[told["worker"]] = "limit"

    def _on_end(self, key: str, future: Any) -> None:
        """Take in that dask's task ended, when its events or its worker's end did not say so."""
        if future.status == "finished":
            result = future.result()
            with self._lock:
                for message in result:
                    running = self._running.get(key)
                    if running is not None and message["n"] == running.seen:
                        self._pass_on(message, running)
            return
        said = "the connection to the scheduler was lost"
        if future.status == "error":
            said = first_line(future.exception())
        with self._lock:
            if key in self._running:
                self._die(key, "died" if future.status == "error" else "lost", said)

    def _die(self, key: str, reason: str, said: str = "") -> None:
        running = self._running.pop(key)
        if not running.seen:
            self._put(running, "start", {**backend.describe(), "worker": running.address})
        kills = _kernel_kills()
        if reason == "died" and self._cluster is not None and kills > self._kills:
            reason = "memory"
        self._kills = kills
        if reason == "limit":
            limit = self._table.max_megabytes
            what = f"max_megabytes = {limit}" if limit else "its share of the machine's memory"
            message = f"needed more memory than {what}, and was killed"
            fields = {"reason": "memory", "message": message, "traceback": ""}
            self._put(running, "failed", fields)
            return
        message = {
            "died": "its worker process ended: killed, or crashed",
            "memory": "the kernel killed its worker for want of memory",
            "lost": "its worker was not heard of any more",
        }[reason]
        message += f" ({said})" if said else ""
        self._put(running, "died", {"reason": reason, "message": message})


def _aside(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a function in a thread of its own; the worker, or dask itself, may be gone meanwhile."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function(*arguments, **options)

    threading.Thread(target=call, daemon=True).start()


def _kill_process(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kernel_kills() -> int:
    """Return how many processes the kernel has killed for want of memory; 0 if it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def assign_devices(found: list[str], gpus: float, workers: int) -> list[str]:
    """Return for each worker the GPUs that it sees.

    Args:
        found: The machine's GPUs.
        gpus: Of one worker: a whole number, or a share below 1.
        workers: How many there are.

    Raises:
        EngineError: there are not so many.
    """
    if gpus >= 1 and gpus != int(gpus):
        raise EngineError(
            f"engine: expected gpus below 1, or a whole number; received {gpus:g}. Correct it."
        )
    share = int(1 / gpus + 1e-9) if gpus < 1 else 1  # workers a GPU
    each = max(1, int(gpus))
    most = len(found) * share // each
    if workers > most:
        raise EngineError(
            f"engine: expected at most {most} workers with {gpus:g} of the {len(found)} GPUs each; "
            f"received {workers}. Lower --workers or --gpus."
        )
    if gpus < 1:
        return [found[n // share] for n in range(workers)]
    return [",".join(found[n * each : (n + 1) * each]) for n in range(workers)]
