"""The plan: what a sweep would do and take, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnn_search.definition import Definition


def budget(sweep: Definition) -> tuple[int, int]:
    """Return how many trials and epochs there will be, in all."""
    full = sweep.training.epochs
    if sweep.oracle.kind != "hyperband":
        return sweep.trials, sweep.trials * full
    rounds = sweep.oracle.brackets(full)
    trials = 1 + sum(count for count, _, _ in rounds)
    return trials, full + sum(count * (end - start) for count, start, end in rounds)


def in_all(sweep: Definition) -> str:
    """Return in words how many trials and epochs there will be, Hyperband's by its brackets."""
    trials, epochs = budget(sweep)
    total = f"{trials} trials and {epochs} epochs in all"
    if sweep.oracle.kind != "hyperband":
        return total
    rounds = sweep.oracle.brackets(sweep.training.epochs)
    words = [f"{count} trials from epoch {start} to {end}" for count, start, end in rounds]
    return f"the baseline, {', '.join(words)}; {total}"


def describe(sweep: Definition) -> list[str]:
    """Return what a sweep would do, a line each."""
    lines = [
        f"{sweep.name}: images of {sweep.data}, space {sweep.search_space}, seed {sweep.seed}",
        f"objective: {', '.join([sweep.objective, *sweep.costs])}; {who(sweep)}",
        f"at most {in_all(sweep)}",
    ]
    if rungs := sweep.pruner.rungs(sweep.training.epochs):
        shown = ", ".join(map(str, rungs[:8])) + ", ..." * (len(rungs) > 8)
        lines.append(f"pruner {sweep.pruner.kind}: the worse end after epoch {shown}")
    lines += [
        f"only networks whose {name} are {limit}" for name, limit in sweep.constraints.items()
    ]
    if sweep.stop.patience:
        lines.append(f"ends after {sweep.stop.patience} trials without a better one")
    if sweep.epochs_total:
        lines.append(f"ends after epoch {sweep.epochs_total:,} of all trials together")
    if sweep.disk_megabytes:
        lines.append(f"ends when its folder has more than {sweep.disk_megabytes:g} MB")
    workers = sweep.engine.workers
    where = f"{workers} worker process{'es' * (workers != 1)} here" if workers else "this process"
    lines.append(f"trains in {sweep.engine.scheduler or where}")
    if sweep.minutes:
        lines.append(f"ends after the epoch that runs at minute {sweep.minutes:g}")
    if sweep.final:
        books = ", ".join(sweep.final.baselines) or "the first baseline"
        lines.append(
            f"then {books} and the best {sweep.final.top} are trained anew, {sweep.final.seeds} "
            f"seeds of {sweep.training.epochs} epochs each, and scored once on the test part"
        )
    lines += [f"narrowed: {name} = {json.dumps(v)}" for name, v in sweep.space.items()]
    return lines


def who(sweep: Definition) -> str:
    """Return who chooses configurations and who ends trials, and whether that was left to us."""
    kinds = {"oracle": sweep.oracle.kind, "pruner": sweep.pruner.kind}
    words = [f"{name}: {kind}{' (auto)' * (name in sweep.chosen)}" for name, kind in kinds.items()]
    return ", ".join(words)


def measured(sweep: Definition, dataset: Any) -> list[str]:
    """Measure networks of each size; return what the sweep will take, a line each."""
    from cnn_search import probe
    from cnn_search.progress import duration
    from cnn_search.speed import fit
    from cnn_search.subject import baseline_values, setup_of
    from cnn_search.training import make_space

    sizes = probe.probe(sweep, dataset)
    predicted = fit(sizes)
    lines = [
        f"{size.name}: {size.parameters:,} parameters, {size.flops:,} FLOPs an image; "
        f"{size.epoch_seconds:.2g} s an epoch, {size.begin_seconds:.2g} s to begin"
        for size in sizes
    ]
    lines.append(f"each is predicted from the others within {predicted.error:.0%}, by the median")
    (trials, epochs), full = budget(sweep), sweep.training.epochs
    seconds = probe.seconds_of(sizes, trials, epochs, full)
    lines.append(f"the search: about {duration(seconds)} here, if no trial ends early")
    if table := sweep.final:
        space = make_space(setup_of(sweep, Path("unused")), dataset)
        books = len(baseline_values(space, table.baselines))
        each = probe.seconds_of(sizes, books + table.top, full * (books + table.top), full)
        lines.append(f"the final scoring: about {duration(each * table.seeds)}")
    megabytes = probe.megabytes_of(sizes, trials, sweep.keep_models)
    return [*lines, f"on the disk: about {megabytes:,.0f} MB"]
