"""What a sweep loses when something breaks: one fault after another, in real processes.

python benchmarks/reliability.py [--quick] [--rounds N] [--only NAME ...] [--seed N] [--json FILE]

Each fault meets a small sweep that runs (benchmarks/sweeping.py); then the sweep goes on, or the
same command takes it up. Lost is a trial whose ask, curve or result is not that of an undisturbed
sweep; doubled one that is on record twice, or has two final runs in MLflow. Besides, nothing may be
left behind: a process, a lock, a run that is RUNNING. docs/reliability.md has a whole run's table.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from sweeping import TOML, Sweep, judge, living, undisturbed, wait_until

from cnn_search.ledger import Ledger, read_events

WORKERS = ("--workers", "2")
HERE = ("--workers", "0")
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "6s"}  # a worker is lost after so long


class Tried(NamedTuple):
    """What came of a fault: how often it was tried, trials lost and doubled, what is to be said."""

    times: int
    lost: int
    doubled: int
    note: str = ""


class Skipped(Exception):
    """A fault that cannot be tried here, and why."""


def pause(rng: random.Random, most: float = 1.0) -> None:
    """Wait for a random moment, as short as often as long."""
    time.sleep(rng.choice([0.0, rng.uniform(0, most)]))


def reasons(sweep: Sweep) -> str:
    """Return in words how attempts were cut short."""
    told = [event.get("reason", "with the driver") for event in sweep.events("killed")]
    return ", ".join(f"{told.count(reason)} {reason}" for reason in sorted(set(told)))


# Processes that die


def kill_driver(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGKILL of the driver of two workers, at random moments."""
    sweep, times = Sweep(folder, *WORKERS), 0
    for _ in range(1 if quick else 3):
        process, before = sweep.start(), len(sweep.events())
        if not sweep.wait_for(process, "", before + rng.randint(2, 7)):
            break
        pause(rng)
        process.kill()
        process.wait()
        times += 1
        assert wait_until(lambda: not living(sweep.sessions), 60), "workers live on"
    sweep.finish()
    return Tried(times, *judge(sweep), "workers ended of themselves")


def worker_of(address: str, pids: list[int]) -> psutil.Process:
    """Return the process that listens at a worker's address, below these processes."""
    port = int(address.rpartition(":")[2])
    for pid in pids:
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(c.laddr.port == port and not c.raddr for c in child.net_connections("tcp")):
                    return child
    raise AssertionError(f"no worker listens at {address}")


def kill_worker(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGKILL of the worker of a trial that trains, another trial each time."""
    sweep = Sweep(folder, *WORKERS)
    process = sweep.start()
    times = 0
    for trial in rng.sample([0, 1, 2], 1) if quick else (0, 1, 2):
        if sweep.wait_for(process, "start", 1, trial):
            starts = [e for e in sweep.events("start") if e["trial"] == trial]
            pause(rng, 5)
            with contextlib.suppress(AssertionError, psutil.Error):  # it may be renewed already
                worker_of(starts[0]["worker"], [process.pid]).kill()
                times += 1
    sweep.finish(process)
    return Tried(times, *judge(sweep), f"attempts cut short: {reasons(sweep)}")


def kill_all_workers(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGKILL of both workers in the same moment."""
    sweep = Sweep(folder, *WORKERS)
    process = sweep.start()
    assert sweep.wait_for(process, "start", 2)
    pause(rng, 5)
    found = [worker_of(e["worker"], [process.pid]) for e in sweep.events("start")[:2]]
    for worker in found:
        worker.kill()
    sweep.finish(process)
    return Tried(1, *judge(sweep), f"attempts cut short: {reasons(sweep)}")


def stop_worker(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGSTOP of a worker for longer than its heartbeat (6 s here; 60 s unless set)."""
    sweep = Sweep(folder, *WORKERS, environment=TTL)
    process = sweep.start()
    assert sweep.wait_for(process, "epoch", 1)
    started, ended = sweep.events("start"), sweep.events("done")
    [event, *_] = [e for e in started if e["trial"] not in {d["trial"] for d in ended}] or started
    worker_of(event["worker"], [process.pid]).send_signal(signal.SIGSTOP)
    sweep.finish(process)
    return Tried(1, *judge(sweep), f"attempts cut short: {reasons(sweep)}")


def dask_command(
    which: str, log: Path, *arguments: str, inside: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    command = [*inside, sys.executable, "-m", f"distributed.cli.dask_{which}", "--no-dashboard"]
    with open(log, "ab") as file:
        return subprocess.Popen(
            [*command, *arguments],
            stdout=file,
            stderr=file,
            env={**os.environ, **TTL},
            start_new_session=True,
        )


def end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    """End what was started here, and all in their sessions."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for process in living([process.pid for process in processes]):
        process.kill()


def lose_scheduler(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGKILL of a cluster's scheduler, which stays away; the sweep is taken up without it."""
    folder.mkdir(parents=True)
    port, log, cluster = free_port(), folder / "cluster.txt", []
    address = f"tcp://127.0.0.1:{port}"
    sweep = Sweep(folder, "--scheduler", address)
    try:
        cluster.append(dask_command("scheduler", log, "--host", "127.0.0.1", "--port", str(port)))
        cluster.append(dask_command("worker", log, address, "--nthreads", "1", "--nworkers", "2"))
        process = sweep.start()
        assert sweep.wait_for(process, "epoch", rng.randint(1, 3))
        end_all(cluster)
        code = process.wait(SECONDS_TO_END)
        assert code == 2, f"exit code {code}\n{sweep.said()[-3000:]}"
        note = f"{last_error(sweep)[:60]}...; the same with --workers 2 went on"
    finally:
        end_all(cluster)
    sweep.options = WORKERS
    sweep.finish()
    return Tried(1, *judge(sweep), note)


def kill_scheduler(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """SIGKILL of a cluster's scheduler, which is started anew with its workers."""
    folder.mkdir(parents=True)
    port, log, cluster = free_port(), folder / "cluster.txt", []
    address = f"tcp://127.0.0.1:{port}"

    def start() -> None:
        cluster.append(dask_command("scheduler", log, "--host", "127.0.0.1", "--port", str(port)))
        for _ in range(2):
            cluster.append(dask_command("worker", log, address, "--nthreads", "1"))

    sweep = Sweep(folder, "--scheduler", address)
    try:
        start()
        process = sweep.start()
        assert sweep.wait_for(process, "epoch", rng.randint(1, 3))
        cluster[0].kill()
        cluster[0].wait()
        time.sleep(5)
        end_all(cluster)
        cluster.clear()
        start()
        try:
            sweep.finish(process)
            note = "the sweep went on by itself"
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it neither goes on nor ends: {sweep.said()[-500:]}") from None
        except AssertionError:
            note = f"the sweep ended ({last_error(sweep)}); the same command went on"
            sweep.finish()
        return Tried(1, *judge(sweep), f"{note}; attempts cut short: {reasons(sweep)}")
    finally:
        end_all(cluster)


@contextlib.contextmanager
def two_networks(here: str, there: str) -> Iterator[Callable[[str], None]]:
    """Two machines with a cable, as Linux can have them; gives a function that sets it up or down.

    They are called `here` (10.77.0.1) and `there` (10.77.0.2).
    """

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            raise Skipped(f"ip {' '.join(words)}: {done.stderr.strip()}")

    if not shutil.which("ip"):
        raise Skipped("there is no ip")
    made = []
    try:
        for name in (here, there):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        names = ("link", "add", "cable0", "netns", here, "type", "veth", "peer", "name", "cable0")
        ip(*names, "netns", there)
        for number, name in enumerate(made, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable0")
            ip("-n", name, "link", "set", "cable0", "up")
        yield lambda state: ip("-n", here, "link", "set", "cable0", state)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=True)


def cut_network(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """The cable between driver and workers is unplugged for longer than the heartbeat."""
    folder.mkdir(parents=True)
    here, there = (f"cnn{os.getpid()}{end}" for end in "ab")
    address, log, cluster = "tcp://10.77.0.1:8786", folder / "cluster.txt", []
    inside = {name: ("ip", "netns", "exec", name) for name in (here, there)}

    def start_workers() -> None:
        arguments = (address, "--nthreads", "1", "--nworkers", "2")
        cluster.append(dask_command("worker", log, *arguments, inside=inside[there]))

    with two_networks(here, there) as plug:
        try:
            arguments = ("--host", "10.77.0.1", "--port", "8786")
            cluster.append(dask_command("scheduler", log, *arguments, inside=inside[here]))
            start_workers()
            options = ("--scheduler", address, "--insecure")
            sweep = Sweep(folder, *options, inside=inside[here])
            process = sweep.start()
            assert sweep.wait_for(process, "epoch", rng.randint(1, 3))
            plug("down")
            time.sleep(20)
            plug("up")
            time.sleep(10)
            alone = cluster[1].poll() is None
            if not alone:  # dask's workers end when their scheduler is gone
                start_workers()
            sweep.finish(process)
            note = "workers came back by themselves" if alone else "workers were started anew"
            return Tried(1, *judge(sweep), f"{note}; attempts cut short: {reasons(sweep)}")
        finally:
            end_all(cluster)


def last_error(sweep: Sweep) -> str:
    """Return the last line that a command said of an error; it must be one, without a traceback."""
    said = sweep.said()
    assert "Traceback" not in said, said[said.index("Traceback") - 1000 :][:3000]
    lines = [line for line in said.splitlines() if line.startswith(("error:", "The disk is full"))]
    assert lines, said[-3000:]
    return lines[-1]


# A user who has enough


def interrupt(number: int, times: int, options: tuple[str, ...]) -> Callable[..., Tried]:
    """Return a fault: SIGTERM to the driver, or Ctrl-C to all processes of its terminal."""

    def fault(folder: Path, rng: random.Random, quick: bool) -> Tried:
        sweep = Sweep(folder, *options)
        process = sweep.start()
        assert sweep.wait_for(process, "", rng.randint(4, 12))
        pause(rng)
        for n in range(times):
            time.sleep(0.5 if n else 0)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        code = process.wait(SECONDS_TO_END)
        assert code == 130, f"exit code {code}\n{sweep.said()[-3000:]}"
        assert "Traceback" not in sweep.said(), sweep.said()[-3000:]
        assert wait_until(lambda: not living(sweep.sessions), 30), living(sweep.sessions)
        assert sweep.events()[-1]["kind"] == "end"
        sweep.finish()
        return Tried(times, *judge(sweep), "exit code 130")

    return fault


SECONDS_TO_END = 300  # after a Ctrl-C, on a busy machine; MLflow gets the last of it meanwhile


# MLflow that is not there


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a real server, and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.txt", "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True
        )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{port}/health"
            return bool(urllib.request.urlopen(url, timeout=5).status == 200)
        return False

    assert wait_until(answers, 180), (folder / "server.txt").read_text()[-2000:]
    return process


class _Broken(http.server.BaseHTTPRequestHandler):
    """Answers 500 whatever is asked."""

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        self.send_error(500)

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def nobody(port: int) -> Iterator[None]:
    """Nothing listens there."""
    yield


@contextlib.contextmanager
def broken(port: int) -> Iterator[None]:
    """A server that answers 500."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent(port: int) -> Iterator[None]:
    """One that accepts and says nothing."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
        yield


def lose_server(stand_in: Callable[[int], Any], back: bool) -> Callable[..., Tried]:
    """Return a fault: the MLflow server is killed, something else stands there, it comes back.

    Args:
        stand_in: What stands at its address meanwhile.
        back: While the sweep runs; else after it has ended.
    """

    def fault(folder: Path, rng: random.Random, quick: bool) -> Tried:
        folder.mkdir(parents=True)
        port = free_port()
        uri = f"http://127.0.0.1:{port}"
        sweep = Sweep(folder, *HERE, environment={"MLFLOW_TRACKING_URI": uri})
        servers = [mlflow_server(folder, port)]
        try:
            process = sweep.start()
            assert sweep.wait_for(process, "", rng.randint(5, 9))
            end_all(servers)
            with stand_in(port):
                if back:
                    sweep.wait_for(process, "done", 3)
                else:
                    sweep.finish(process)
            servers[:] = [mlflow_server(folder, port)]
            sweep.finish(process)
            late = "MLflow does not have everything" in sweep.said()
            note = (
                "what was late came with the next command" if late else "all was there at the end"
            )
            assert late or back
            return Tried(1, *judge(sweep, uri=uri), note)
        finally:
            end_all(servers)

    return fault


LATE = "what was late came with the next command"


def lateness(sweep: Sweep) -> str:
    """Return in words whether MLflow had everything when the sweep ended."""
    return LATE if "MLflow does not have everything" in sweep.said() else "all was there at the end"


def lock_database(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """Another process holds MLflow's database: BEGIN EXCLUSIVE for a while."""
    seconds, sweep = 10 if quick else 60, Sweep(folder, *HERE)
    process = sweep.start()
    assert sweep.wait_for(process, "", rng.randint(5, 9))
    database = sqlite3.connect(sweep.mlruns / "mlflow.db", isolation_level=None, timeout=60)
    with contextlib.closing(database):
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        database.execute("ROLLBACK")
    sweep.finish(process)
    return Tried(1, *judge(sweep), f"{seconds} s; {lateness(sweep)}")


def delete_in_mlflow(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """A user deletes a trial's run, then the whole experiment, while the sweep runs."""
    import mlflow

    sweep = Sweep(folder, *HERE)
    process = sweep.start()
    assert sweep.wait_for(process, "done", 1)
    client = mlflow.MlflowClient(f"sqlite:///{sweep.mlruns.resolve()}/mlflow.db")

    def runs() -> list[Any]:
        found = [e.experiment_id for e in client.search_experiments() if e.name == "small"]
        return [run for run in client.search_runs(found) if "trial" in run.data.tags]

    assert wait_until(lambda: bool(runs()), 60)
    client.delete_run(runs()[0].info.run_id)
    assert sweep.wait_for(process, "done", 2)
    [experiment] = [e for e in client.search_experiments() if e.name == "small"]
    client.delete_experiment(experiment.experiment_id)
    sweep.finish(process)
    assert "was deleted in MLflow" in sweep.said(), sweep.said()[-3000:]
    assert sweep.start().wait() == 2  # it is gone: one line says how to restore it
    assert "Restore it" in last_error(sweep)
    client.restore_experiment(experiment.experiment_id)
    return Tried(2, *judge(sweep, whole=False), "the sweep said so, and went on")


# A disk, a ledger, a clock


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Callable[[float], None]]:
    """A file system of its own; gives a function that sets its size."""
    folder.mkdir(parents=True)

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Skipped(f"mount is refused: {done.stderr.strip()}")

    if not shutil.which("mount"):
        raise Skipped("there is no mount")
    mount(f"size={int(megabytes * 1024)}k")
    try:
        yield lambda size: mount(f"remount,size={int(size * 1024)}k")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """A disk too small for the sweep, then a little larger, then large enough."""
    folder.mkdir(parents=True)
    sizes = rng.sample([2.0, 3.0, 4.0, 5.0, 6.0, 8.0], 1 if quick else 3)
    with small_disk(folder / "disk", min(sizes)) as resize:
        sweep, full = Sweep(folder, *HERE, mlruns=folder / "disk"), []
        for size in sorted(sizes):
            resize(size)
            code = sweep.start().wait(SECONDS_TO_END)
            if code == 0:
                break
            assert code in (1, 2), f"exit code {code}\n{sweep.said()[-3000:]}"
            assert last_error(sweep)
            # only a write that found no space may be torn, as the last one: else this raises
            full.append(f"{size:g} MB after {len(sweep.events())} events")
        resize(200)
        sweep.finish()
        return Tried(len(full), *judge(sweep), f"full at {', '.join(full)}")


def truncate_ledger(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """The last record cut at each byte and opened; the last trial's cut anywhere, and run."""
    whole = Sweep(folder / "whole", *HERE)
    whole.finish()
    assert whole.ledger is not None
    text = whole.ledger.read_bytes()
    ends = [end for _, end in read_events(whole.ledger)]
    copy = folder / "copy.jsonl"
    for size in range(ends[-2], ends[-1]):
        copy.write_bytes(text[:size])
        ledger = Ledger(copy)
        ledger.open()
        ledger.close()
        assert copy.stat().st_size == ends[-2]
        assert bool(ledger.notes) == (size > ends[-2])
    opened, lost, doubled = ends[-1] - ends[-2], 0, 0
    last = [event["kind"] for event in whole.events()]
    cuts = rng.sample(range(ends[len(last) - 9], ends[-1]), 1 if quick else 3)
    for number, size in enumerate(cuts):
        sweep = Sweep(folder / f"cut{number}", *HERE)
        shutil.copytree(whole.mlruns / "sweeps", sweep.mlruns / "sweeps")
        assert sweep.ledger is not None
        os.truncate(sweep.ledger, size)
        sweep.finish()
        found = judge(sweep)
        lost, doubled = lost + found[0], doubled + found[1]
    note = f"{opened} opened, {len(cuts)} run to the end"
    return Tried(opened + len(cuts), lost, doubled, note)


BACK = """import os, time
_real, _flag = time.time, os.environ["CLOCK_SET_BACK"]
time.time = lambda: _real() - 3600 * os.path.exists(_flag)
"""


def set_clock_back(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """time.time() goes back by an hour in the middle of the sweep."""
    (folder / "path").mkdir(parents=True)
    (folder / "path" / "sitecustomize.py").write_text(BACK)
    flag = folder / "flag"
    environment = {"PYTHONPATH": str(folder / "path"), "CLOCK_SET_BACK": str(flag)}
    sweep = Sweep(folder, *HERE, "--minutes", "55", environment=environment)
    process = sweep.start()
    assert sweep.wait_for(process, "", rng.randint(5, 15))
    flag.touch()
    sweep.finish(process)
    times = [event["time"] for event in sweep.events()]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) < -3000
    return Tried(1, *judge(sweep), "55 minutes allowed were not used up")


# Users and networks that do what they should not


def start_twice(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """The same command again while the first one runs."""
    sweep = Sweep(folder, *HERE)
    process = sweep.start()
    assert sweep.wait_for(process, "", rng.randint(2, 8))
    second = sweep.start()
    assert second.wait(SECONDS_TO_END) == 2, sweep.said()[-3000:]
    assert "expected to be its only driver" in last_error(sweep)
    sweep.finish(process)
    return Tried(1, *judge(sweep), "the second ended with one line, exit code 2")


FAILING = '''"""A space whose trials with this batch size fail."""
from search_spaces import digits


class Space(digits.Space):
    """The digits space, but for one batch size."""

    def build(self, hp):
        if hp.values["batch_size"] == 32:
            raise ValueError("no such network")
        return super().build(hp)
'''


def fail_in_a_row(folder: Path, rng: random.Random, quick: bool) -> Tried:
    """Four trials fail one after another: KerasTuner alone gives up after three."""
    (folder / "path").mkdir(parents=True)
    (folder / "path" / "failing.py").write_text(FAILING)
    text = TOML.replace("trials = 4", 'trials = 7\nsearch_space = "failing:Space"')
    text = text.replace("batch_size = 64", "batch_size = [64]")
    rates = (0.001, 0.002, 0.003, 0.004)
    tries = [a for r in rates for a in ("--try", f"batch_size=32 learning_rate={r}")]
    path = {"PYTHONPATH": str(folder / "path")}
    sweep = Sweep(folder, *HERE, *tries, environment=path, text=text)
    sweep.finish()
    ended = {e["trial"]: e["kind"] for e in sweep.events("done", "failed")}
    lost = 7 - len(ended) + sum(ended.get(n) != "failed" for n in (1, 2, 3, 4))
    lost += sum(ended.get(n) != "done" for n in (0, 5, 6))
    return Tried(4, lost, len(sweep.events("done", "failed")) - len(ended), "the sweep went on")


FAULTS: dict[str, Callable[[Path, random.Random, bool], Tried]] = {
    "worker killed": kill_worker,
    "driver of workers killed": kill_driver,
    "Ctrl-C": interrupt(signal.SIGINT, 1, WORKERS),
    "Ctrl-C twice": interrupt(signal.SIGINT, 2, WORKERS),
    "SIGTERM": interrupt(signal.SIGTERM, 1, HERE),
    "SIGTERM twice": interrupt(signal.SIGTERM, 2, HERE),
    "disk full": fill_disk,
    "MLflow server gone": lose_server(nobody, back=False),
    "MLflow server restarted": lose_server(nobody, back=True),
    "MLflow server answers 500": lose_server(broken, back=True),
    "MLflow server silent": lose_server(silent, back=True),
    "database locked": lock_database,
    "scheduler killed": kill_scheduler,
    "scheduler gone": lose_scheduler,
    "network cut": cut_network,
    "all workers killed": kill_all_workers,
    "worker suspended": stop_worker,
    "ledger truncated": truncate_ledger,
    "clock set back": set_clock_back,
    "two drivers": start_twice,
    "deleted in MLflow": delete_in_mlflow,
    "failures in a row": fail_in_a_row,
}


def tried(name: str, folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Return the row of a fault; one that fails says why."""
    row: dict[str, Any] = {"fault": name, "seed": seed}
    began, used = time.monotonic(), cpu_seconds()
    try:
        row |= FAULTS[name](folder, random.Random(f"{seed} {name}"), quick)._asdict()
    except Skipped as error:
        row["skipped"] = str(error)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    seconds = round(time.monotonic() - began)
    return row | {"seconds": seconds, "cpu_seconds": round(cpu_seconds() - used)}


def cpu_seconds() -> float:
    """Return what this process and those of its own that ended have used."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def add_up(rows: list[dict[str, Any]]) -> str:
    """Return the line of a fault's rounds."""
    name = rows[0]["fault"]
    if problem := next((row for row in rows if "failed" in row or "skipped" in row), None):
        said = "FAILED" if "failed" in problem else "not tried"
        return f"{name:28} {said}: {problem.get('failed') or problem['skipped']}"
    counts = " ".join(f"{sum(r[key] for r in rows):8}" for key in ("times", "lost", "doubled"))
    return f"{name:28} {counts}   {rows[-1]['note']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each fault as seldom as can be")
    parser.add_argument("--rounds", type=int, default=1, help="of each fault")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    undisturbed()
    rounds: dict[str, list[dict[str, Any]]] = {}
    print(f"seed {options.seed}\n{'fault':28} {'times':>8} {'lost':>8} {'doubled':>8}")
    for name in options.only:
        rounds[name] = []
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "fault"
                rounds[name].append(tried(name, place, options.seed + number, options.quick))
        print(add_up(rounds[name]), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rounds, indent=2))
    rows = [row for found in rounds.values() for row in found]
    sys.exit(any("failed" in r or r.get("lost") or r.get("doubled") for r in rows))


if __name__ == "__main__":
    main()
