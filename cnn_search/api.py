"""The surface in Python: run a sweep, look at one as tables, and take its best model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_search import commands, ledger
from cnn_search.champion import Champion
from cnn_search.errors import LedgerError
from cnn_search.ledger import Record, Trial

if TYPE_CHECKING:
    import pandas as pd


class Sweep:
    """A sweep on this machine, running or not: every look reads its ledger anew.

    Attributes:
        folder: Where its ledger and its models are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def record(self) -> Record:
        """All that the ledger tells."""
        return ledger.read_record(self.folder / "ledger.jsonl")

    def trials(self) -> pd.DataFrame:
        """Return the trials of the search, a row each, indexed by their numbers.

        Columns: source, name (of a baseline or recipe), status, epochs, score (the objective of
        the weights that were kept), parameters, flops, seconds, message (why it failed), and every
        hyperparameter; NaN where a trial has none.
        """
        return _frame(self.record.trials)

    def finals(self) -> pd.DataFrame:
        """Return the final scoring's trainings, a row each, as `trials` has them.

        Columns beside: finalist, test_accuracy, test_loss; in 0..1 and nats.
        """
        record = self.record
        frame = _frame(record.finals)
        if len(frame):
            kept = record.definition["training"]["weights"]
            tests = [trial.tests.get(kept, {}) for trial in record.finals.values()]
            frame.insert(0, "finalist", [trial.finalist for trial in record.finals.values()])
            frame.insert(1, "test_accuracy", [test.get("accuracy") for test in tests])
            frame.insert(2, "test_loss", [test.get("loss") for test in tests])
        return frame

    def curves(self) -> pd.DataFrame:
        """Return every epoch of the search, indexed by trial and epoch; a column a metric."""
        import pandas as pd

        rows = {
            (trial.number, epoch): {**metrics, "seconds": trial.seconds[epoch]}
            for trial in self.record.trials.values()
            for epoch, metrics in trial.curve.items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["trial", "epoch"])
        return frame

    def answer(self) -> dict[str, Any]:
        """Return how much better, at what cost, how sure; as `report --json` has it."""
        from cnn_search.answer import answer

        return answer(self.record)

    def report(self) -> Path:
        """Write what it found as one HTML page, in its folder; return its path."""
        from cnn_search.report import page

        return page.write(self.folder / "ledger.jsonl", self.folder / "report.html")

    def __repr__(self) -> str:
        return f"{self.folder.name}: {self.answer()['sentence']}"


def run(
    sweep: str | Path,
    *,
    mlruns: str | Path = "mlruns",
    tries: Sequence[Mapping[str, Any]] = (),
    warm_start: str = "",
    new: bool = False,
    final: bool = True,
    **changes: Any,
) -> Sweep:
    """Run a sweep as `python -m cnn_search.sweep` does, or go on with the newest of its name.

    Args:
        sweep: One that comes with the package, a TOML file, or your own images.
        mlruns: The folder of ledgers and of MLflow's own store.
        tries: Configurations of your own: values on top of the baseline's.
        warm_start: An earlier sweep, or "best", to begin with what it found.
        new: Start a new one, whatever there is.
        final: Also score the best on the test part, and write the report.
        **changes: Keys of the TOML file and their values; those of a table as `table__key`, and
            `epochs`, `oracle`, `pruner`, `workers` as the command's options. Trials are trained in
            this process, unless `workers` says otherwise (then guard your script with
            `if __name__ == "__main__":`). The same seed gives the same curves only where Keras was
            not imported before.

    Raises:
        CnnSearchError: something is wrong that training would not mend; nothing was trained.
        KeyboardInterrupt: at Ctrl-C, when all is written down; the same call goes on.
    """
    from rich.console import Console

    from cnn_search import backend, datasets, definition, plan, progress

    given = {commands.KEYS.get(k, k).replace("__", "."): v for k, v in changes.items()}
    chosen = definition.read(str(sweep), given)
    table = chosen.final if final else None
    backend.prepare(chosen.engine.threads_here())
    reporter = progress.Reporter(Console(stderr=True), *plan.budget(chosen), chosen.minutes)
    dataset = datasets.load(
        chosen.data,
        data_dir=chosen.data_dir,
        train_limit=chosen.train_limit,
        image_size=chosen.image_size,
    )
    backend.load()
    from cnn_search import final as scoring
    from cnn_search import search
    from cnn_search.report import page

    told: dict[str, Any] = {"on_event": reporter, "say": reporter.say}
    begin: dict[str, Any] = {"tries": tries, "new": new, "warm_start": warm_start}
    try:
        reserve = scoring.reserve(table, chosen.minutes)
        outcome = search.run(chosen, dataset, Path(mlruns), **begin, reserve=reserve, **told)
        outcome = scoring.conclude(outcome, chosen, table, dataset, Path(mlruns), **told)
    finally:
        reporter.close()
    page.leave(outcome, chosen.name, Path(mlruns), reporter.say)
    if outcome.undelivered:
        reporter.say(f"MLflow does not have everything: {outcome.undelivered}")
    if outcome.ending == "disk":
        reporter.say("The disk is full; nothing is lost. Make space, then the same call goes on.")
    if outcome.ending == "interrupted":
        raise KeyboardInterrupt
    return Sweep(outcome.folder)


def load(name: str, *, mlruns: str | Path = "mlruns") -> Sweep:
    """Return the newest sweep of a name.

    Raises:
        LedgerError: there is none.
    """
    folder = ledger.find_sweep(Path(mlruns), name)
    if folder is None:
        raise LedgerError(
            f"load: expected a sweep called {name!r} in {ledger.sweeps_folder(Path(mlruns))}; "
            "there is none. Run it first, or pass mlruns=."
        )
    return Sweep(folder)


def best(name: str, *, mlruns: str | Path = "mlruns", alias: str = "champion") -> Champion:
    """Return the model that a sweep registered; see `champion.read`."""
    from cnn_search import champion

    return champion.read(name, Path(mlruns), alias)


def _frame(trials: Mapping[int, Trial]) -> pd.DataFrame:
    import pandas as pd

    rows = {
        number: {
            "source": trial.source,
            "name": trial.baseline or trial.recipe,
            "status": trial.status,
            "epochs": len(trial.curve),
            "score": trial.result.get("score"),
            "parameters": trial.result.get("parameters"),
            "flops": trial.result.get("flops"),
            "seconds": sum(trial.seconds.values()),
            "message": trial.failure.get("message", ""),
            **trial.values,
        }
        for number, trial in trials.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "trial"
    return frame
