"""One contract for every engine: real trainings, real worker processes, real deaths."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dask
import distributed
import keras
import numpy as np
import psutil
import pytest

from cnn_search import cluster, datasets, worker
from cnn_search.definition import EngineTable
from cnn_search.driver import make_engine
from cnn_search.errors import EngineError
from cnn_search.speed import Speed
from cnn_search.training import Protocol, Setup, Task, make_space
from search_spaces import digits as digits_space

ENDS = ("done", "refused", "failed", "stopped", "died")
SECONDS = 120  # until an event that must come is given up; no measure of speed


class Fate(digits_space.Space):
    """The digits space, where a batch size decides what a trial comes to."""

    def build(self, hp):
        if hp.values["batch_size"] == 16:
            raise ValueError("no such network")
        return super().build(hp)

    def fit(self, hp, model, *args, **options):
        size = hp.values["batch_size"]
        while size == 128:
            time.sleep(0.1)
        if size == 32:  # long enough for a word to come from anywhere
            options["callbacks"].append(keras.callbacks.LambdaCallback(on_epoch_begin=linger))
        eaten = []
        while size == 256:
            eaten.append(np.ones(4_000_000))
            time.sleep(0.01)
        return super().fit(hp, model, *args, **options)


def linger(epoch, logs):
    time.sleep(5 if epoch else 0)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", train_limit=200)


def setup_in(folder):
    folder.mkdir(exist_ok=True)
    return Setup(f"{__name__}:Fate", Protocol(3), folder, checkpoint_seconds=0)


def test_a_trial_that_is_told_now_stops_now_whatever_else_is_told(digits, tmp_path):
    engine = make_engine(EngineTable(workers=0), setup_in(tmp_path / "a"), digits, print)
    task = Task(3, 1, {}, 1, 3)
    engine.stop("epoch")
    assert engine._told(task) == "epoch"
    engine.stop("now", 3)
    engine.stop("epoch", 3)
    assert engine._told(task) == "now"


def test_a_disk_that_is_full_before_the_first_trial_is_said_and_nothing_stays(
    digits, tmp_path, monkeypatch
):
    def full(folder, dataset):
        folder.mkdir(parents=True)
        (folder / "train_labels.npy").touch()
        raise OSError("8000 requested and 100 written")

    monkeypatch.setattr("cnn_search.worker.write_images", full)
    engine = make_engine(EngineTable(workers=1), setup_in(tmp_path / "a"), digits, print)
    with pytest.raises(EngineError, match="expected space for a copy of the images in .* written"):
        engine.start()
    assert not (tmp_path / "a/images").exists()


@contextlib.contextmanager
def started(folder, dataset, *, setup=None, **table):
    """An engine that trains in `folder`, closed at the end."""
    engine = make_engine(EngineTable(**table), setup or setup_in(folder), dataset, print)
    engine.start()
    try:
        yield engine
    finally:
        engine.close(wait=False)


@pytest.fixture(scope="module", params=["inline", "dask"])
def engine(request, tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp(request.param)
    table = {"inline": {}, "dask": {"workers": 2}}[request.param]
    with started(folder, digits, **table) as engine:
        yield engine


@pytest.fixture(scope="module")
def values(digits, tmp_path_factory):
    space = make_space(setup_in(tmp_path_factory.mktemp("space")), digits)
    small = {"depth": 1, "convolutions": 1, "filters_1": 8, "batch_size": 64}
    return space.baseline_values("vgg_bn") | small


def wait_for(engine, number, *kinds):
    """Return the events of a trial up to the first of these kinds; others' stay where they are."""
    others, found = [], []
    while not found or found[-1][0] not in kinds:
        event = engine.events.get(timeout=SECONDS)
        (found if event[1].get("trial") == number else others).append(event)
    for other in others:
        engine.events.put(other)
    return found


def follow(engine, number, seen=()):
    """Return a trial's events up to its end."""
    return [*seen, *wait_for(engine, number, *ENDS)]


def curve(events):
    return [fields["metrics"] for kind, fields in events if kind == "epoch"]


numbers = iter(range(1000))


def submit(engine, values, *, number=None, attempt=1, recorded=0, limited=False, **changes):
    number = next(numbers) if number is None else number
    deadline = time.monotonic() + SECONDS
    while not engine.slots():
        assert time.monotonic() < deadline, "no worker joined"
        time.sleep(0.05)
    task = Task(number, attempt, values | changes, 7, 3, recorded=recorded, limited=limited)
    engine.submit(task)
    return number


# The contract


def test_a_trial_tells_its_start_each_epoch_and_its_end_in_order(engine, values):
    number = submit(engine, values)
    events = follow(engine, number)
    assert [kind for kind, _ in events] == ["start", "epoch", "epoch", "epoch", "done"]
    assert [fields.get("epoch") for _, fields in events[1:4]] == [1, 2, 3]
    assert all(fields["attempt"] == 1 for _, fields in events)
    assert events[0][1]["threads"] == 1
    assert events[-1][1]["memory_bytes"] > 1e8


def test_every_engine_trains_the_same_to_the_last_digit(tmp_path, digits, values, engine):
    number = submit(engine, values)
    here = curve(follow(engine, number))
    with started(tmp_path, digits) as inline:
        there = curve(follow(inline, submit(inline, values)))
    assert here == there


def test_a_stop_ends_a_trial_after_its_epoch_and_the_next_attempt_goes_on(engine, values):
    whole = curve(follow(engine, submit(engine, values | {"batch_size": 32})))
    number = submit(engine, values, batch_size=32)
    before = wait_for(engine, number, "epoch")
    engine.stop("epoch", number)
    events = follow(engine, number, before)
    assert events[-1][0] == "stopped"
    recorded = len(curve(events))
    assert recorded < 3
    submit(engine, values, number=number, attempt=2, recorded=recorded, batch_size=32)
    again = follow(engine, number)
    assert again[-1][0] == "done"
    assert curve(events) + curve(again) == whole


def test_a_trial_that_is_told_to_stop_now_leaves_no_further_epoch(engine, values):
    number = submit(engine, values, batch_size=32)
    before = wait_for(engine, number, "epoch")
    engine.stop("now", number)
    events = follow(engine, number, before)
    assert [kind for kind, _ in events] == ["start", "epoch", "stopped"]


def test_a_network_that_cannot_be_built_has_a_reason_of_its_own(engine, values):
    events = follow(engine, submit(engine, values, batch_size=16))
    assert [kind for kind, _ in events] == ["start", "failed"]
    assert events[-1][1]["reason"] == "build"
    assert events[-1][1]["message"] == "ValueError: no such network"
    assert "Traceback" in events[-1][1]["traceback"]


def test_a_loss_that_is_no_number_is_no_reason_to_end_the_engine(engine, values):
    events = follow(engine, submit(engine, values, optimiser="sgd", sgd_learning_rate=float("inf")))
    assert events[-1][1]["reason"] == "diverged"
    assert follow(engine, submit(engine, values))[-1][0] == "done"


@pytest.mark.parametrize("table", [{}, {"workers": 1}], ids=["inline", "dask"])
def test_a_network_that_costs_too_much_is_refused_and_its_slot_is_free(
    tmp_path, digits, values, table
):
    costly = {"speed": Speed((10.0, 0.0, 0.0, 0.0, 0.0), 0.1), "limits": {"epoch_seconds": "<= 9"}}
    setup = dataclasses.replace(setup_in(tmp_path), **costly)  # each step takes 10 s
    with started(tmp_path, digits, setup=setup, **table) as engine:
        events = follow(engine, submit(engine, values, limited=True))
        assert [kind for kind, _ in events] == ["start", "refused"]
        assert events[-1][1]["message"].endswith(" epoch_seconds, allowed: <= 9")
        events = follow(engine, submit(engine, values))
        assert events[-1][0] == "done"
        assert events[-1][1]["epoch_seconds"] > 9


# Worker processes


@pytest.fixture(scope="module")
def workers(tmp_path_factory, digits):
    """Two worker processes, of which a silent one is lost after seconds."""
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "6s"}),
        started(tmp_path_factory.mktemp("workers"), digits, workers=2, renew_after=3) as engine,
    ):
        yield engine


def pid_of(engine, number):
    [address] = [r.address for r in engine._running.values() if r.task.trial == number]
    return engine._members[address].pid


def all_joined(engine, count=2):
    deadline = time.monotonic() + SECONDS
    while engine.slots() < count:
        assert time.monotonic() < deadline, f"{engine.slots()} of {count} workers"
        time.sleep(0.05)


def test_two_workers_train_at_once_and_the_images_are_on_the_disk_once(workers, values):
    all_joined(workers)
    numbers = [submit(workers, values, batch_size=128) for _ in range(2)]
    pids = {pid_of(workers, number) for number in numbers}
    assert len(pids) == 2
    folder = workers._setup.folder / worker.IMAGES
    assert {file.name for file in folder.iterdir()} == {
        "class_names.npy",
        *(
            f"{part}_{what}.npy"
            for part in ("train", "validation")
            for what in ("images", "labels")
        ),
    }
    for number in numbers:
        wait_for(workers, number, "start")
    mapped = {map.path for map in psutil.Process(pids.pop()).memory_maps()}
    assert str(folder / "train_images.npy") in mapped
    for number in numbers:  # they never end of themselves
        workers.kill(number)


def test_a_killed_worker_is_told_and_another_takes_its_place(workers, values):
    all_joined(workers)
    number = submit(workers, values, batch_size=128)
    wait_for(workers, number, "start")
    os.kill(pid_of(workers, number), signal.SIGKILL)
    kind, fields = follow(workers, number)[-1]
    assert (kind, fields["reason"]) == ("died", "died")
    assert "its worker process ended" in fields["message"]
    all_joined(workers)
    assert follow(workers, submit(workers, values))[-1][0] == "done"


def test_a_worker_that_is_not_heard_of_is_lost_and_replaced(workers, values):
    all_joined(workers)
    number = submit(workers, values, batch_size=128)
    wait_for(workers, number, "start")
    stopped = pid_of(workers, number)
    os.kill(stopped, signal.SIGSTOP)
    kind, fields = follow(workers, number)[-1]
    assert (kind, fields["reason"]) == ("died", "lost")
    all_joined(workers)
    assert not psutil.pid_exists(stopped)


def test_a_trial_that_does_not_stop_is_killed_and_tells_nothing_more(workers, values):
    all_joined(workers)
    number = submit(workers, values, batch_size=128)
    wait_for(workers, number, "start")
    workers.stop("now", number)
    workers.kill(number)
    all_joined(workers)
    assert follow(workers, submit(workers, values))[-1][0] == "done"
    while not workers.events.empty():
        assert workers.events.get()[1].get("trial") != number


def test_a_worker_is_renewed_after_so_many_trials(workers, values):
    all_joined(workers)
    seen = set()
    for _ in range(7):  # at most three in each of two processes
        number = submit(workers, values)
        seen.add(pid_of(workers, number))
        follow(workers, number)
    assert len(seen) >= 3


def test_a_trial_that_takes_too_much_memory_is_killed_and_has_failed(tmp_path, digits, values):
    with started(tmp_path / "sweep", digits, workers=1, max_megabytes=2000) as engine:
        kind, fields = follow(engine, submit(engine, values, batch_size=256))[-1]
        assert (kind, fields["reason"]) == ("failed", "memory")
        assert fields["message"] == "needed more memory than max_megabytes = 2000, and was killed"


def test_all_listen_on_loopback_alone_and_nothing_is_left_behind(tmp_path, digits, values):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with started(tmp_path / "sweep", digits, workers=1) as engine:
        me = psutil.Process()
        ours = [me, *(c for c in me.children(recursive=True) if c.pid not in before)]
        listening = [c.laddr.ip for p in ours for c in p.net_connections() if c.status == "LISTEN"]
        assert len(listening) >= 2
        assert set(listening) == {"127.0.0.1"}
        number = submit(engine, values, batch_size=128)
        wait_for(engine, number, "start")
    gone, alive = psutil.wait_procs([p for p in ours if p.pid != me.pid], timeout=20)
    # multiprocessing's own resource tracker stays as long as this process
    assert [p for p in alive if "resource_tracker" not in " ".join(p.cmdline())] == []
    assert not (tmp_path / "sweep" / worker.IMAGES).exists()


# A cluster of others


@pytest.fixture
def others(tmp_path, monkeypatch):
    """Starts dask's own commands with TLS, as docs/cluster.md does; ends them at the end."""
    made = distributed.Security.temporary()
    (tmp_path / "cert.pem").write_text(made.tls_ca_file)
    (tmp_path / "key.pem").write_text(made.tls_client_key)
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    settings = {"require-encryption": True, "tls.ca-file": cert}
    for role in ("scheduler", "worker", "client"):
        settings |= {f"tls.{role}.cert": cert, f"tls.{role}.key": key}
    settings = {f"distributed.comm.{name}": value for name, value in settings.items()}
    for name, value in settings.items():  # a variable is how docs/cluster.md sets it
        monkeypatch.setenv("DASK_" + name.upper().replace(".", "__").replace("-", "_"), str(value))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where this file's space is
    processes = []

    def start(which, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{which}", "--no-dashboard"]
        log = open(tmp_path / f"{which}{len(processes)}.log", "wb")  # noqa: SIM115
        processes.append(subprocess.Popen([*command, *arguments], stdout=log, stderr=log))
        return processes[-1]

    with dask.config.set(settings):
        yield start
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(SECONDS)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_cluster_with_tls_trains_and_a_worker_that_does_not_fit_is_refused(
    tmp_path, digits, values, others
):
    address = f"tls://127.0.0.1:{free_port()}"
    others("scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", address[16:])
    unfit = others("worker", address, "--nthreads", "2")
    with (
        pytest.raises(EngineError, match="expected 1 thread, as one trial runs in a process"),
        started(tmp_path / "sweep", digits, scheduler=address),
    ):
        raise AssertionError("it started")
    unfit.terminate()
    unfit.wait(SECONDS)
    others("worker", address, "--nthreads", "1", "--nworkers", "2")
    with started(tmp_path / "sweep", digits, scheduler=address) as engine:
        all_joined(engine)
        events = follow(engine, submit(engine, values))
    assert [kind for kind, _ in events] == ["start", "epoch", "epoch", "epoch", "done"]
    assert events[0][1]["worker"].startswith("tls://127.0.0.1:")
    message = "expected .*'threads': 7.* it has trained another sweep, with .*'tensorflow'"
    with pytest.raises(EngineError, match=message):
        make_engine(
            EngineTable(scheduler=address, threads=7), setup_in(tmp_path / "b"), digits, print
        ).start()


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(cluster, "START_SECONDS", 2)
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        pytest.raises(EngineError, match=f"engine: expected dask's scheduler at {address}; rec"),
        started(tmp_path / "sweep", digits, scheduler=address),
    ):
        raise AssertionError("it started")


# GPUs, as far as that goes without one


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        (1, 2, ["a", "b"]),
        (2, 2, ["a,b", "c,d"]),
        (0.5, 3, ["a", "a", "b"]),
        (0.3, 4, ["a", "a", "a", "b"]),
    ],
)
def test_each_worker_sees_its_own_gpus(gpus, workers, expected):
    assert cluster.assign_devices(["a", "b", "c", "d"], gpus, workers) == expected


def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(EngineError, match=r"at most 2 workers with 1 of the 2 GPUs each; rec.* 3"):
        cluster.assign_devices(["0", "1"], 1, 3)
    with pytest.raises(EngineError, match="gpus below 1, or a whole number; received 1.5"):
        cluster.assign_devices(["0", "1"], 1.5, 1)


def test_the_gpus_are_those_that_the_user_left_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert cluster.devices() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert cluster.devices() == []


def test_a_trial_gets_its_gpu_as_a_resource_and_in_its_environment(
    tmp_path, digits, values, monkeypatch
):
    monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", "0"
    )  # there need be none: TensorFlow then finds none
    with started(tmp_path / "sweep", digits, workers=2, gpus=0.5) as engine:
        engine._client.wait_for_workers(2)
        known = engine._client.scheduler_info(n_workers=-1)["workers"]
        # as tasks: a broadcast fails where a worker is busy. Of names that a worker has imported.
        names = ["CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH"]
        asked = [
            engine._client.submit(os.getenv, name, workers=[address], pure=False)
            for address in known
            for name in names
        ]
        assert [one.result() for one in asked] == ["0", "true"] * 2
        assert [w["resources"] for w in known.values()] == [{"GPU": 0.5}] * 2
        assert follow(engine, submit(engine, values))[-1][0] == "done"


@pytest.mark.skipif(not cluster.devices(), reason="there is no GPU here")
def test_a_trial_trains_on_the_gpu(tmp_path, digits, values):
    with started(tmp_path / "sweep", digits, workers=1, gpus=1) as engine:
        assert follow(engine, submit(engine, values))[-1][0] == "done"
        [used] = engine._client.run(gpus_of_tensorflow).values()
        assert used == 1


def gpus_of_tensorflow():
    return len(sys.modules["tensorflow"].config.list_logical_devices("GPU"))
