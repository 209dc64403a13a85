"""Definitions: a sweep's TOML file, and the options that change it, as checked pydantic models.

Imports nothing heavy: a broken file is answered in a fraction of a second.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from cnn_search import limits
from cnn_search.errors import DefinitionError
from cnn_search.limits import Cost, Limit
from cnn_search.surroundings import usable_cores

# what may change while a sweep goes on: how long it runs, and where its images lie (which images
# they are has a digest of its own)
NOT_IN_DIGEST = {
    *("trials", "minutes", "epochs_total", "disk_megabytes", "keep_models"),
    *("data", "data_dir", "engine", "final", "stop", "recipes"),
}
AUTO = "auto"
WORTH_PRUNING = 6  # epochs of a trial
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a sweep: it names folders, and a model
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Precision = Literal["float32", "mixed_bfloat16"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TrainingTable(_Table):
    """[training]: what is the same for every trial, and not searched.

    Attributes:
        epochs: Full fidelity: the epochs of a trial that is not cut short.
        patience: Epochs without a better `monitor` before a trial with a constant learning rate
            ends; 0 for never.
        monitor: What patience looks at.
        weights: Which weights a trial keeps and is scored by.
        class_weights: Weigh classes by the inverse of their share.
        precision: What training computes in; "mixed_bfloat16" may be faster where the processor has
            it. The model that is kept computes in float32, and is scored so.
        checkpoint_seconds: How old the last checkpoint may become before an epoch leaves a new one.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=0)] = 0
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"
    weights: Literal["best", "last"] = "best"
    class_weights: bool = False
    precision: Precision = "float32"
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0


class OracleTable(_Table):
    """[oracle]: who chooses the next configuration.

    Attributes:
        kind: One of KerasTuner's own, or "tpe" or "gp": Optuna's samplers; "gp" needs torch. In a
            file also "auto", or left out: "grid" with `over`, else "tpe".
        over: For "grid": the hyperparameters that vary; all others keep the baseline's value.
        factor: For "hyperband": the share 1/factor of trials is promoted.
        iterations: For "hyperband": how often all brackets are run.
    """

    kind: Literal["random", "grid", "bayesian", "hyperband", "tpe", "gp"] = "random"
    over: list[str] = []
    factor: Annotated[int, Field(ge=2)] = 3
    iterations: Annotated[int, Field(ge=1)] = 1

    def brackets(self, epochs: int) -> list[tuple[int, int, int]]:
        """Return Hyperband's plan for full `epochs`: (trials, from epoch, to epoch) of each round.

        As KerasTuner 1.4.8 counts; Li et al. 2018, jmlr.org/papers/v18/16-558.html.
        """
        most = math.floor(math.log(epochs, self.factor) + 1e-9)
        rounds = []
        for bracket in range(most, -1, -1):
            start = 0
            for left in range(bracket, -1, -1):  # promotions that still follow
                last = math.ceil(1 + math.log(epochs, self.factor))
                trials = math.ceil(last / (bracket + 1) * self.factor**left)
                end = math.ceil(epochs / self.factor**left)
                rounds.append((trials, start, end))
                start = end
        return rounds * self.iterations

    @model_validator(mode="after")
    def _check(self) -> OracleTable:
        if self.kind == "grid" and not self.over:
            raise ValueError("over: expected the names of the hyperparameters that grid varies")
        if self.kind != "grid" and self.over:
            raise ValueError(f"over: expected with kind 'grid' only; received kind {self.kind!r}")
        return self


class PrunerTable(_Table):
    """[pruner]: which trials are ended before their last epoch, as others are better.

    Attributes:
        kind: "asha": at each rung, all but the best 1/factor of those that came so far (Li et al.
            2020, arXiv:1810.05934); "median": who is worse than half of the others at this epoch;
            "percentile": who is not among so many per cent of them. Optuna's. In a file also
            "auto", or left out: "asha" where the oracle is left out too, a trial has 6 epochs or
            more and there is one objective; else "none".
        first_epoch: The first epoch after which a trial may be ended; left out: a ninth of all
            (docs/search.md).
        factor: For "asha": the next rung is after so many times the epochs.
        percentile: For "percentile".
        startup_trials: For "median" and "percentile": as many finish before one is ended.
    """

    kind: Literal["none", "asha", "median", "percentile"] = "none"
    first_epoch: Annotated[int, Field(ge=1)] | None = None
    factor: Annotated[int, Field(ge=2)] = 3
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0
    startup_trials: Annotated[int, Field(ge=1)] = 5

    def first(self, epochs: int) -> int:
        """Return the first epoch after which a trial of so many may be ended."""
        return self.first_epoch or math.ceil(epochs / 9)

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs after which trials are ended, the last one's left out."""
        if self.kind == "none":
            return []
        if self.kind != "asha":
            return list(range(self.first(epochs), epochs))
        powers = (self.first(epochs) * self.factor**n for n in range(epochs))
        return list(itertools.takewhile(lambda rung: rung < epochs, powers))


class StopTable(_Table):
    """[stop]: when the search ends by itself.

    Attributes:
        patience: Trials in a row without a better one; 0 for never.
    """

    patience: Annotated[int, Field(ge=0)] = 0


class FinalTable(_Table):
    """[final]: what is trained again at the end, and scored on the test part.

    Attributes:
        top: How many of the best configurations.
        seeds: How often each of them, and each baseline, is trained.
        baselines: Their names; empty for the data set's first, "all" for each.
    """

    top: Annotated[int, Field(ge=1)] = 3
    seeds: Annotated[int, Field(ge=2, le=100)] = 5
    baselines: list[str] = []


class RegistryTable(_Table):
    """[registry]: which network is registered; the best by the objective, or a cheaper one near it.

    Attributes:
        within: How much worse than the best it may be, in units of the objective (0.01 is one point
            of accuracy); of all that are so near, the cheapest is taken.
        cost: What is cheap.
    """

    within: Annotated[float, Field(ge=0)] = 0.0
    cost: Cost = "parameters"


class EngineTable(_Table):
    """[engine]: where trials run, and what one of them may take.

    Attributes:
        workers: Worker processes on this machine, each for one trial at a time; 0 for none: one
            trial at a time in a thread of this process. None: the command chooses, a program has 0.
        scheduler: The address of a running dask scheduler, whose workers train instead.
        insecure: Allow a scheduler on another machine without TLS.
        gpus: Of a trial: 1, or a share of one.
        threads: Of a trial. None: its share of its machine's cores; a final scoring keeps those of
            the search.
        renew_after: Trials after which a worker process is replaced by a fresh one, in case that
            somebody's code keeps memory.
        max_attempts: How often a trial is begun whose worker died or was lost.
        max_minutes: A trial that takes longer has failed.
        max_megabytes: A worker process of ours that needs more memory is killed.
    """

    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    scheduler: str = ""
    insecure: bool = False
    gpus: Annotated[float, Field(ge=0)] = 0.0
    threads: Annotated[int, Field(ge=1)] | None = None
    renew_after: Annotated[int, Field(ge=1)] = 50
    max_attempts: Annotated[int, Field(ge=1)] = 3
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    max_megabytes: Annotated[int, Field(ge=1)] | None = None

    def threads_here(self) -> int:
        """Return the threads of a trial on this machine: those given, or its share of the cores."""
        return self.threads or max(1, usable_cores() // (self.workers or 1))

    @model_validator(mode="after")
    def _check(self) -> EngineTable:
        scheme, _, rest = self.scheduler.partition("://")
        host = rest.rpartition(":")[0].strip("[]")
        if self.scheduler and (scheme not in ("tcp", "tls") or not host):
            raise ValueError(
                "scheduler: expected tls://HOST:PORT or tcp://HOST:PORT; received "
                f"{self.scheduler!r}"
            )
        if scheme == "tcp" and host not in LOOPBACK and not self.insecure:
            raise ValueError(
                "scheduler: expected tls:// for another machine, as whoever reaches a scheduler "
                f"runs code on its workers; received {self.scheduler!r}. Set up TLS "
                "(docs/cluster.md), or type --insecure in a network that you trust"
            )
        if self.scheduler and self.workers:
            raise ValueError("workers: expected 0 with a scheduler, which has its own workers")
        if self.max_megabytes and (self.workers == 0 or self.scheduler):
            raise ValueError(
                "max_megabytes: expected with worker processes of ours (--workers 1) only; the "
                "command itself cannot be killed, and a cluster's have `dask worker --memory-limit`"
            )
        if self.gpus and self.workers == 0 and not self.scheduler:
            raise ValueError(
                "gpus: expected with worker processes (--workers 1) or --scheduler only"
            )
        return self


class Definition(_Table):
    """A sweep: one search over one data set.

    Attributes:
        name: Of the sweep and of its registered model: the file's, without ".toml".
        data: A name of `datasets.DATASETS`, or the path of a folder, `.npz` or `.h5`.
        search_space: Name or reference of the space; see `training.find_space`.
        data_dir: Folder with the data set's archives.
        train_limit: Use only so many images of the training part.
        image_size: (height, width) that a folder's images are resized to.
        objective: What is searched for, and ranked by; a key of `training.OBJECTIVES`.
        costs: What is searched for beside it, as small as can be: some of `limits.Cost`. A file
            names both in one list, `objectives`.
        seed: At least 1.
        trials: How many in all, baselines among them; Hyperband has its own budget.
        minutes: Training ends after the epoch that runs then, summed over all runs of the sweep.
        epochs_total: Training ends after the epoch in which so many are reached, all trials
            together.
        disk_megabytes: The search ends when its sweep's folder has become larger.
        baselines: The first is trial 0; empty for the data set's first, "all" for each.
        recipes: Try what the space recommends next.
        keep_models: How many of the best trials keep their weights.
        training, oracle, pruner, stop, engine, registry: See there.
        final: See there; without it, a sweep ends with its search.
        space: Fixes a hyperparameter (a value) or narrows it (a list of values).
        constraints: What a network may cost, as "<= 500_000" by a name of `limits.Limit`; one
            that costs more is not trained, and does not count among the trials.
    """

    name: Annotated[str, Field(pattern=NAME)]
    data: str
    search_space: str
    data_dir: str | None = None
    train_limit: Annotated[int, Field(ge=1)] | None = None
    image_size: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)]] | None = None
    objective: Literal["val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"] = (
        "val_accuracy"
    )
    costs: list[Cost] = []
    seed: Annotated[int, Field(ge=1, lt=2**31)] = 1
    trials: Annotated[int, Field(ge=1)] = 20
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    epochs_total: Annotated[int, Field(ge=1)] | None = None
    disk_megabytes: Annotated[float, Field(gt=0)] | None = None
    baselines: list[str] = []
    recipes: bool = True
    keep_models: Annotated[int, Field(ge=1)] = 3
    training: TrainingTable = TrainingTable()
    oracle: OracleTable = OracleTable()
    pruner: PrunerTable = PrunerTable()
    stop: StopTable = StopTable()
    engine: EngineTable = EngineTable()
    registry: RegistryTable = RegistryTable()
    final: FinalTable | None = None
    space: dict[str, Any] = {}
    constraints: dict[Limit, Annotated[str, AfterValidator(limits.check)]] = {}
    _chosen: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _check(self) -> Definition:
        if self.pruner.kind != "none" and self.oracle.kind == "hyperband":
            raise ValueError(
                "pruner.kind: expected none with the oracle hyperband, which ends and promotes "
                f"trials itself; received {self.pruner.kind!r}"
            )
        if self.costs and self.oracle.kind not in ("tpe", "gp"):
            raise ValueError(
                "objectives: expected one with any oracle but tpe and gp, as the others know one; "
                f"received oracle {self.oracle.kind!r}"
            )
        if self.costs and self.pruner.kind != "none":
            raise ValueError(
                "objectives: expected one with a pruner, which compares by one; received pruner "
                f"{self.pruner.kind!r}"
            )
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """Which of "oracle" and "pruner" `read` chose, as the file and the options did not."""
        return self._chosen

    def as_json(self) -> dict[str, Any]:
        """Return the definition as the ledger keeps it."""
        return self.model_dump(mode="json")


TABLES: dict[str, type[BaseModel]] = {
    "training": TrainingTable,
    "oracle": OracleTable,
    "pruner": PrunerTable,
    "stop": StopTable,
    "engine": EngineTable,
    "registry": RegistryTable,
    "final": FinalTable,
}


def digest(definition: Mapping[str, Any]) -> str:
    """Return the digest of a definition without what may change while a sweep goes on."""
    fixed = {key: value for key, value in definition.items() if key not in NOT_IN_DIGEST}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two definitions, as "training.epochs: 10 -> 20"."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{key}.{line}" for line in differences(before, after)]
        elif before != after:
            found.append(f"{key}: {json.dumps(before)} -> {json.dumps(after)}")
    return found


def shipped() -> dict[str, Traversable]:
    """Return the TOML files that come with the package, by name."""
    files = importlib.resources.files("sweeps").iterdir()
    return {
        file.name.removesuffix(".toml"): file
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def purpose(file: Traversable) -> str:
    """Return the first line of a sweep's TOML file, which says what it is for."""
    return file.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def read(name: str, changes: Mapping[str, Any] | None = None) -> Definition:
    """Read a sweep by name or path, with `changes` ("training.epochs" -> 3) on top.

    Args:
        name: A shipped sweep; the path of a TOML file; or the path of the user's own images (a
            folder, an `.npz` or `.h5`), which are swept as `sweeps/images.toml` says.
        changes: Values by key, or by table and key with a dot between.

    Returns:
        The definition; what was left to us of oracle and pruner is decided in it.

    Raises:
        DefinitionError: no such sweep, no TOML, or wrong keys or values; all problems at once.
    """
    file, own, stem = _find(name)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{file}: expected a TOML file; {error}. Correct it.") from None
    except OSError as error:
        raise DefinitionError(f"{file}: cannot be read ({error.strerror}).") from None
    content = {"name": stem, **content, **own}
    for key, value in (changes or {}).items():
        table, _, entry = key.rpartition(".")
        target = content.setdefault(table, {}) if table else content
        if not isinstance(target, dict):
            raise DefinitionError(f"--set {key}: {table} is not a table of {file.name}.")
        target[entry] = value
    if "search_space" not in content and isinstance(content.get("data"), str):
        spaces = importlib.resources.files("search_spaces")
        own_space = spaces.joinpath(f"{content['data']}.py").is_file()
        content["search_space"] = content["data"] if own_space else "images"
    _expand_objectives(content, file)
    chosen = _choose(content)
    definition = _validate(content, file, changes)
    definition._chosen = chosen
    return definition


def _expand_objectives(content: dict[str, Any], file: Any) -> None:
    """Put `objective` and `costs` in the place of `objectives`, which names them in one list."""
    if "objectives" not in content:
        return
    named = content.pop("objectives")
    if not isinstance(named, list) or len(named) < 2 or {"objective", "costs"} & set(content):
        raise DefinitionError(
            f'{file}: objectives: expected a metric and what it may cost, as ["val_accuracy", '
            f'"flops"], and no `objective` beside it; received {json.dumps(named, default=str)}. '
            "Correct it."
        )
    content["objective"], *content["costs"] = named


def _choose(content: dict[str, Any]) -> tuple[str, ...]:
    """Put in the oracle and the pruner that are left to us, and return which: "auto", or left out.

    What does well on recorded curves (docs/search.md). Who names an oracle gets no pruner
    that is not named too; where trials are short, there is little to save.
    """
    oracle, pruner = content.setdefault("oracle", {}), content.setdefault("pruner", {})
    if not (isinstance(oracle, dict) and isinstance(pruner, dict)):
        return ()  # refused by validation
    chosen = []
    if oracle.get("kind", AUTO) == AUTO:
        oracle["kind"] = "grid" if oracle.get("over") else "tpe"
        chosen.append("oracle")
    if pruner.get("kind", AUTO if chosen else "none") == AUTO:
        training = content.get("training")
        epochs = training.get("epochs") if isinstance(training, dict) else None
        short = isinstance(epochs, int) and epochs < WORTH_PRUNING
        plain = oracle["kind"] in ("random", "tpe", "gp") and not content.get("costs")
        pruner["kind"] = "asha" if plain and not short else "none"
        chosen.append("pruner")
    return tuple(chosen)


def from_record(content: Mapping[str, Any]) -> Definition:
    """Return the definition of a ledger; what an older version did not know has its default.

    Raises:
        DefinitionError: this version does not understand it.
    """
    return _validate(content, "the ledger")


def with_engine(definition: Definition, changes: Mapping[str, Any]) -> EngineTable:
    """Return a definition's [engine] with `changes` by key on top, as the command line gives them.

    Raises:
        DefinitionError: they are wrong.
    """
    content = definition.as_json()
    return _validate({**content, "engine": content["engine"] | dict(changes)}, "options").engine


def _validate(
    content: Mapping[str, Any], file: Any, changes: Mapping[str, Any] | None = None
) -> Definition:
    try:
        # JSON mode reads a TOML array as a tuple where one is wanted, and stays strict otherwise
        # (a TOML date is in no field: as a text, it is refused as any other)
        return Definition.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        problems = [_problem(file, problem, changes or {}) for problem in error.errors()]
        raise DefinitionError("\n".join(problems)) from None


def _find(name: str) -> tuple[Any, dict[str, Any], str]:
    """Return the TOML file, what the name itself says, and the sweep's name."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise DefinitionError(f"{name}: expected a sweep's TOML file; there is none.")
        return path, {}, path.stem
    files = shipped()
    if name in files:
        return files[name], {}, name
    if path.exists():
        own = path.resolve()
        stem = own.name if own.is_dir() else own.stem
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-")
        return files["images"], {"data": name}, stem or "images"
    near = difflib.get_close_matches(name, files) or list(files)
    raise DefinitionError(
        f"{name}: expected the name of a sweep, a TOML file, or your own images (a folder, .npz or "
        f".h5); there is none. Did you mean {', '.join(near)}? --list shows all sweeps."
    )


def _problem(file: Any, problem: Any, changes: Mapping[str, Any]) -> str:
    """Return one line: file or options, table, key, expected, received, what to do."""
    where = [
        str(part) for part in problem["loc"] if not str(part).startswith(("list[", "function"))
    ]
    if ".".join(where) in changes:
        file = "options"
    table = f"[{where[0]}] " if len(where) > 1 and where[0] in (*TABLES, "space") else ""
    key = ".".join(where[1:] if table else where)
    received = json.dumps(problem["input"])
    if problem["type"] == "extra_forbidden":
        known = TABLES.get(where[0], Definition)
        near = difflib.get_close_matches(where[-1], known.model_fields)
        keys = near or list(known.model_fields)
        return f"{file}: {table}{key}: no such key; did you mean {', '.join(keys)}? Correct it."
    if problem["type"] == "missing":
        return f"{file}: {key}: expected a value; there is none. Add it."
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{file}: [{'.'.join(where)}] {expected}. Correct it."
    return f"{file}: {table}{key}: expected {expected}; received {received}. Correct it."
