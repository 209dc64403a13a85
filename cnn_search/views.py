"""Views: MLflow's table of runs, sorted and with the columns that say which trial is best and what.

Saved in the experiment as MLflow 3.17's own button "Save as new view" does it.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
TRIALS, FINAL = "cnn_search_trials", "cnn_search_final"


def save(client: Any, experiment: str, objective: str) -> None:
    """Save our views in an experiment, unless they are there: a user may have changed them.

    Args:
        client: A `MlflowClient`.
        experiment: Its identity.
        objective: A key of `training.OBJECTIVES`; trials are sorted by it, the best first.
    """
    best, costs = f"metrics.`best_{objective}`", ["metrics.`parameters`", "metrics.`seconds`"]
    trials = {
        "searchFilter": "tags.trial != ''",
        "orderByKey": best,
        "orderByAsc": objective == "val_loss",
        "selectedColumns": [best, *costs, "tags.`kind`", "tags.`outcome`", "tags.`changed`"],
        "columnWidths": {
            best: 150,
            "tags.`kind`": 140,
            "tags.`outcome`": 150,
            "tags.`changed`": 500,
        },
    }
    final = {
        "searchFilter": "tags.kind = 'final'",
        "orderByKey": "metrics.`test_accuracy`",
        "orderByAsc": False,
        "selectedColumns": ["metrics.`test_accuracy`", best, *costs, "tags.`finalist`"],
    }
    present = client.get_experiment(experiment).tags
    views = ((TRIALS, "Trials, best first", trials), (FINAL, "Final scoring", final))
    for key, name, state in views:
        if TAG + key not in present:
            client.set_experiment_tag(experiment, TAG + key, _view(name, state))


def page(experiment: str, view: str = TRIALS) -> str:
    """Return where in MLflow's pages an experiment's view is."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={view}"


def _view(name: str, state: dict[str, Any]) -> str:
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs"}
    state |= {"datasetsFilter": [], "columnOrder": [], "runsPinned": [], "runsHidden": []}
    now = int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)
