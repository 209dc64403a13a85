"""Where the time of a sweep goes: a real digits sweep in a process of its own, read off its ledger.

python benchmarks/overhead.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cnn_search.ledger import read_events, read_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two trials, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    trials, epochs = (2, 2) if options.quick else (8, 20)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "cnn_search.sweep",
            "digits",
            "--no-final",
            "--mlruns",
            folder,
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        start = time.time()
        subprocess.run(
            [*command, "--trials", str(trials), "--epochs", str(epochs)],
            check=True,
            capture_output=True,
            env=environment,
        )
        end = time.time()
        [path] = Path(folder).glob("sweeps/*/ledger.jsonl")
        events = [event for event, _ in read_events(path)]
        record = read_record(path)
    first, last = events[0]["time"], events[-1]["time"]
    at = {(e["kind"], e.get("trial"), e.get("epoch")): e["time"] for e in events}
    training = sum(sum(trial.seconds.values()) for trial in record.trials.values())
    first_epochs = [trial.seconds[1] for trial in record.trials.values()]
    build = [
        at["epoch", n, 1] - at["start", n, None] - trial.seconds[1]
        for n, trial in record.trials.items()
    ]
    finish = [
        at["done", n, None] - at["epoch", n, len(trial.curve)] for n, trial in record.trials.items()
    ]
    between = [at["start", n, None] - at["ask", n, None] for n in record.trials]
    rows = {
        "whole command": [end - start],
        "in epochs": [training],
        "before the first line of the ledger (imports, data)": [first - start],
        "after its last line (MLflow catches up, registry)": [end - last],
        "a trial's first epoch (tracing is in it)": first_epochs,
        "building and compiling a trial": build,
        "finishing a trial (model, summary, predictions)": finish,
        "from ask to start": between,
    }
    print(f"{'seconds':54} {'n':>3} {'median':>8} {'min':>8} {'max':>8}")
    for name, values in rows.items():
        median = statistics.median(values)
        print(f"{name:54} {len(values):3} {median:8.2f} {min(values):8.2f} {max(values):8.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
