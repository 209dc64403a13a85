"""The store: where MLflow keeps what it is given, opened and seen to answer.

Nothing here sets MLflow's global tracking URI: it would go into the environment, and the next store
of this process would take it for the user's.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# read when mlflow is imported: no telemetry, and no two-minute waits for a dead server
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
# the jitter is drawn from Python's global generator, which seeds the weights of the trial beside it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# it would print each run's address on stdout, with the user's password
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow  # noqa: E402
from filelock import FileLock  # noqa: E402
from mlflow.entities import Run  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from cnn_search.errors import TrackingError  # noqa: E402

for chatty in ("alembic", "mlflow.store", "mlflow.tracking.fluent"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the follower says it once
# a database that is locked, or on a full disk: a traceback a second
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps what it is given.

    Attributes:
        uri: The tracking URI, with the user's credentials if they are in it.
        experiment: Name of the experiment.
        artifacts: Location of the artifacts; None where the server decides.
    """

    uri: str = field(repr=False)
    experiment: str
    artifacts: str | None

    @property
    def address(self) -> str:
        """The tracking URI without credentials: what may be shown and written down."""
        return without_secrets(self.uri)

    def client(self) -> mlflow.MlflowClient:
        """Return a client of this store."""
        return mlflow.MlflowClient(self.uri)

    def experiment_id(self, client: mlflow.MlflowClient) -> str | None:
        """Return the identity of the experiment, or None if there is none.

        Raises:
            TrackingError: the experiment was deleted; MLflow keeps its name from a new one.
        """
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow: expected the experiment {self.experiment!r} of {self.address}; received "
                f"one that was deleted. Restore it (mlflow experiments restore --experiment-id "
                f"{found.experiment_id}), or set MLFLOW_EXPERIMENT_NAME to another name."
            )
        return str(found.experiment_id)


def read_run(store: Store, run_id: str) -> Run:
    """Return a run by its id.

    Raises:
        TrackingError: there is none, or it was deleted.
    """
    try:
        run = store.client().get_run(run_id)
    except MlflowException as error:
        raise TrackingError(
            f"MLflow: expected the id of a run of {store.address}; received {run_id!r} "
            f"({first_line(error)}). The id stands in the run's address in the UI."
        ) from None
    if run.info.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow: expected a run of {store.address} that is there; {run_id} was deleted. "
            f"Restore it: mlflow runs restore --run-id {run_id}"
        )
    return run


def find_runs(store: Store, experiment_id: str, tag: str, value: str) -> Iterator[Run]:
    """Yield the runs of an experiment that have this tag and were not deleted.

    Raises:
        TrackingError: the server does not answer.
    """
    query = f"tags.`{tag}` = '{value}'"
    try:
        yield from all_pages(store.client().search_runs, [experiment_id], query)
    except MlflowException as error:
        raise TrackingError(
            f"MLflow: expected the runs with {tag} {value!r} from {store.address}; received "
            f"{first_line(error)}. Try again."
        ) from None


def read_curve(store: Store, run: Run) -> dict[int, dict[str, float]]:
    """Return every metric of a run by its step, with all its digits: MLflow keeps doubles.

    Raises:
        TrackingError: the server does not answer.
    """
    client = store.client()
    curve: dict[int, dict[str, float]] = {}
    try:
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            for point in sorted(points, key=lambda point: point.timestamp):
                curve.setdefault(point.step, {})[name] = point.value
    except MlflowException as error:
        raise TrackingError(
            f"MLflow: expected the metrics of run {run.info.run_id} from {store.address}; received "
            f"{first_line(error)}. Try again."
        ) from None
    return curve


def fetch_ledger(store: Store, name: str, folder: Path) -> Path:
    """Write the ledger that the newest sweep called `name` left in MLflow into a folder.

    Returns:
        The file, named after the sweep.

    Raises:
        TrackingError: no such sweep, it left none yet, or the server does not answer.
    """
    experiment = store.experiment_id(store.client())
    runs = find_runs(store, experiment, "cnn_search.kind", "sweep") if experiment else iter(())
    sweeps = {run.data.tags["cnn_search.sweep"]: run.info.run_id for run in runs}
    # whoever may write to the server writes this tag, and it becomes the name of a file
    own = [s for s in sweeps if re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}", s)]
    found = max(own, default=None)
    if found is None:
        raise TrackingError(
            f"MLflow: expected a sweep called {name!r} in {store.address}; there is none. Run "
            f"`python -m cnn_search.sweep {name}` first, or correct the name."
        )
    try:
        path = store.client().download_artifacts(sweeps[found], "ledger.jsonl", str(folder))
    except Exception as error:
        raise TrackingError(
            f"MLflow: expected the artifact ledger.jsonl of {found}, which a sweep leaves when it "
            f"ends; received {first_line(error)}. Let the sweep end, or pass --ledger."
        ) from None
    return Path(path).replace(folder / f"{found}.jsonl")


def upload(store: Store, sweep: str, files: Sequence[Path]) -> None:
    """Leave files as artifacts of a sweep's own run.

    Raises:
        TrackingError: there is no such run, or the server does not take them.
    """
    experiment = store.experiment_id(store.client())
    runs = find_runs(store, experiment, "cnn_search.sweep", sweep) if experiment else iter(())
    parent = next((run for run in runs if run.data.tags.get("cnn_search.kind") == "sweep"), None)
    if parent is None:
        raise TrackingError(
            f"MLflow: expected the run of {sweep} in {store.address}; there is none. Restore it, "
            "or set MLFLOW_TRACKING_URI to the server that has it."
        )
    try:
        for file in files:
            store.client().log_artifact(parent.info.run_id, str(file))
    except Exception as error:
        raise TrackingError(
            f"MLflow: expected {store.address} to take {files[0].name}; received "
            f"{first_line(error)}. Try again."
        ) from None


def open_store(mlruns: Path, name: str, *, create: bool = False) -> Store:
    """Return the store of sweeps called `name`, and see that it answers.

    The user's MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME win; else it is a database and a
    folder of artifacts in `mlruns`, made here if they may be created.

    Raises:
        TrackingError: there is no database, `mlruns` cannot be written, the server does not answer,
            or the experiment was deleted.
    """
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = None
    if not uri:
        database = mlruns.resolve() / "mlflow.db"
        uri, artifacts = f"sqlite:///{database}", (mlruns.resolve() / "artifacts").as_uri()
        if set("%?") & set(str(database)):  # SQLAlchemy takes them for its own
            raise TrackingError(f"{database}: expected a path without % and ?. Pass --mlruns.")
        if create:
            _create(database)
        elif not database.exists():
            raise TrackingError(
                f"{mlruns}: expected MLflow's database, mlflow.db; there is none. Run a sweep "
                "first, or pass --mlruns."
            )
    store = Store(uri, experiment, artifacts)
    try:
        store.experiment_id(store.client())
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow: expected an answer from {store.address}; received {first_line(error)}. Start "
            "the server, correct MLFLOW_TRACKING_URI, or unset it to use mlruns/."
        ) from None
    return store


def _create(database: Path) -> None:
    """Create the database in WAL mode, before anything else opens it: half the time of a write.

    MLflow makes its tables one by one, for seconds, and refuses a file where some are missing. So
    they are made in another file, which gets its name when it is whole.
    """
    # another name each time: MLflow keeps connections by it
    partial = database.with_name(f"mlflow.db.{uuid.uuid4().hex}.partial")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not database.exists():
            with FileLock(database.with_name("mlflow.db.lock")):
                if not database.exists():
                    for old in database.parent.glob("mlflow.db.*.partial*"):  # of a killed one
                        old.unlink()
                    mlflow.MlflowClient(f"sqlite:///{partial}").search_experiments()
                    os.replace(partial, database)
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA user_version=0")
        connection.close()
    except Exception as error:  # SQLAlchemy's, MLflow's, or the file system's
        raise TrackingError(
            f"{database.parent}: expected a folder that can be written; {first_line(error)}. "
            "Correct it or pass --mlruns."
        ) from None


def all_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield what one of MLflow's searches finds, page after page."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        if not (token := page.token):
            return


def without_secrets(text: str) -> str:
    """Return a text without the user and password of the URLs in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line of at most 200 characters, without credentials."""
    said = str(error).strip()
    if not said or isinstance(error, LookupError | TypeError | AttributeError):  # a bug, or as good
        said = f"{type(error).__name__} {said}".strip()
    return without_secrets(said.splitlines()[0])[:200]
