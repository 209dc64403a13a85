"""How many epochs a search needs: oracles and pruners on recorded curves, ours and the peers'.

python benchmarks/search.py PROBLEM [--score likelihood] [--quick] [--only NAME ...] [--seeds N]
    [--trials N] [--json FILE] [--figure FILE.svg]

PROBLEM is a CURVES.toml with its .parquet beside it (benchmarks/curves.py), or nas201-cifar10,
nas201-cifar100, nas201-imagenet. Ours runs in the real loop, with an engine that reads curves
instead of training; a peer runs as it is, on the same table. What counts is the best score of a
trial that went to its end, over the epochs spent. FILE keeps what was found: a search that is in it
is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from curves import SCORES
from scipy import stats
from searches import FEWER, SEARCHES, Problem, Spent, nas_bench_201, recorded

REFERENCE = "KerasTuner random"
History = list[list[float]]  # pairs of epochs spent and the best score by then


def best_after(history: History, epochs: float) -> float:
    return max((score for at, score in history if at <= epochs), default=0.0)


def epochs_to(history: History, score: float, budget: int) -> float:
    """Return after how many epochs a score was reached; the budget if it never was."""
    return next((at for at, found in history if found >= score), budget)


def run(name: str, problem: Problem, seeds: int, budget: int) -> dict[str, Any]:
    """Run a search with each seed.

    Raises:
        ImportError: A peer is not installed, or the search does not fit the problem.
    """
    histories, seconds, trials = [], 0.0, 0
    for seed in range(1, min(seeds, FEWER.get(name, seeds)) + 1):
        spent, began = Spent(budget), time.perf_counter()
        # far apart: KerasTuner's random draws the same points with the seeds 1 and 2, but for one
        drawn = np.random.SeedSequence(seed).generate_state(1)[0]
        SEARCHES[name](problem, int(drawn % 2**31), spent)
        seconds, trials = seconds + time.perf_counter() - began, trials + spent.trials
        histories.append(spent.history)
    return {"histories": histories, "seconds": seconds, "trials": trials}


def times_fewer(
    found: list[History], reference: list[History], target: float, budget: int
) -> tuple[float, float, float]:
    """Return the reference's median epochs to the target over another's, and its 95 % interval.

    Bootstrapped over the seeds of both.
    """
    rng = np.random.default_rng(0)
    own, other = (
        np.array([epochs_to(history, target, budget) for history in side])
        for side in (found, reference)
    )

    def drawn(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.median(rng.choice(values, (4000, len(values))), axis=1)

    low, high = np.quantile(drawn(other) / drawn(own), [0.025, 0.975])
    return float(np.median(other) / np.median(own)), float(low), float(high)


def table(results: dict[str, Any], best: float, budget: int) -> str:
    """Return the table in Markdown, the fewest epochs first."""
    ends = {
        name: [best_after(history, budget) for history in result["histories"]]
        for name, result in results.items()
    }
    target = float(np.median(ends[REFERENCE]))
    others = [name for name in results if name != REFERENCE]
    tests = [stats.mannwhitneyu(ends[name], ends[REFERENCE]).pvalue for name in others]
    adjusted = dict(zip(others, holm(tests), strict=True))
    rows = []
    for name, result in results.items():
        histories = result["histories"]
        epochs = float(np.median([epochs_to(h, target, budget) for h in histories]))
        behind = [100 * (best - end) for end in ends[name]]
        low, middle, high = np.quantile(behind, [0.25, 0.5, 0.75])
        ratio, least, most = times_fewer(histories, results[REFERENCE]["histories"], target, budget)
        cells = [
            name,
            f"{len(histories)}",
            f"{epochs:,.0f}",
            f"{ratio:.1f} ({least:.1f} to {most:.1f})",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{adjusted[name]:.2g}" if name in adjusted else "",
            f"{1000 * result['seconds'] / result['trials']:.0f}",
        ]
        rows.append((epochs, f"| {' | '.join(cells)} |"))
    head = "| search | seeds | epochs to the target | times fewer (95 %) "
    head += "| regret in points (quartiles) | p | ms a trial |"
    told = f"target: {target:.4f}, the median of {REFERENCE}; best: {best:.4f}"
    return "\n".join([head, "|---" * 7 + "|", *(row for _, row in sorted(rows)), "", told])


def holm(values: list[float]) -> list[float]:
    """Return p values adjusted by Holm for being several."""
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    grown = np.minimum(np.maximum.accumulate(np.asarray(values)[order] * factors), 1)
    adjusted = np.empty(len(values))
    adjusted[order] = grown
    return [float(value) for value in adjusted]


def draw(results: dict[str, Any], best: float, budget: int, file: Path) -> None:
    """Draw regret over epochs: the reference, and each house's quickest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    target = float(np.median([best_after(h, budget) for h in results[REFERENCE]["histories"]]))
    quickest: dict[str, tuple[float, str]] = {}
    for name, result in results.items():
        epochs = float(np.mean([epochs_to(h, target, budget) for h in result["histories"]]))
        house = name.split(maxsplit=1)[0]
        quickest[house] = min(quickest.get(house, (np.inf, "")), (epochs, name))
    shown = dict.fromkeys([REFERENCE, *(name for _, name in sorted(quickest.values()))])
    axis = np.unique(np.geomspace(budget / 12, budget, 200).round())
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, name in enumerate(shown):
        histories = results[name]["histories"]
        regret = [[100 * (best - best_after(h, at)) for at in axis] for h in histories]
        low, middle, high = np.quantile(regret, [0.25, 0.5, 0.75], axis=0)
        ours = name.startswith("our")
        style = ["-", "--", "-.", ":"][number % 4]
        (line,) = axes.plot(
            axis, middle, style, label=name, color=f"C{number}", linewidth=2.5 if ours else 1.3
        )
        axes.fill_between(axis, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.axhline(100 * (best - target), color="grey", linewidth=0.8)
    axes.text(
        axis[0], 100 * (best - target), " random's end", va="bottom", fontsize=8, color="grey"
    )
    axes.set(xscale="log", yscale="log", xlabel="epochs spent", ylabel="behind the best, in points")
    axes.set_ylim(bottom=100 * (best - target) / 20)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem")
    parser.add_argument("--score", choices=SCORES, default="accuracy")
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the budget")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SEARCHES, default=[*SEARCHES])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40, help="the budget in whole trainings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keeps what was found")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    nas = options.problem.removeprefix("nas201-")
    problem = (
        recorded(Path(options.problem), options.score)
        if nas == options.problem
        else nas_bench_201(nas)
    )
    seeds, trials = (2, options.trials // 10) if options.quick else (options.seeds, options.trials)
    budget = trials * problem.epochs
    asked = {"problem": options.problem, "score": options.score, "seeds": seeds, "budget": budget}
    kept: dict[str, Any] = {**asked, "results": {}}
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())
        if {**kept, **asked} != kept:
            parser.error(f"{options.json} has other searches than {asked}; name another file")
    print(f"{problem.size:,} configurations; {budget:,} epochs a search, {seeds} seeds")
    for name in options.only:
        if name not in kept["results"]:
            try:
                kept["results"][name] = run(name, problem, seeds, budget)
            except ImportError as error:
                print(f"{name}: left out ({error})", flush=True)
                continue
        result = kept["results"][name]
        ends = [best_after(history, budget) for history in result["histories"]]
        middle, each = np.median(ends), result["seconds"] / len(ends)
        print(
            f"{name}: {100 * (problem.best - middle):.2f} points behind, {each:.1f} s", flush=True
        )
        if options.json:
            options.json.write_text(json.dumps(kept))
    if REFERENCE in kept["results"]:
        print("\n" + table(kept["results"], problem.best, budget))
        if options.figure:
            draw(kept["results"], problem.best, budget, options.figure)


if __name__ == "__main__":
    main()
