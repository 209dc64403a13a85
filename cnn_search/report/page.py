"""Page: a sweep's report as one HTML file, with its twins in Markdown and JSON."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import plotly
from markupsafe import Markup

from cnn_search.answer import answer
from cnn_search.errors import LedgerError, TrackingError
from cnn_search.ledger import Record
from cnn_search.report import sections
from cnn_search.report.analysis import analyse, read
from cnn_search.report.formats import when
from cnn_search.report.parts import Figure, Image, Table

if TYPE_CHECKING:
    from cnn_search.driver import Outcome

MOST_ROWS = 500  # of a table in the page; all are in the JSON twin
MOST_MARKDOWN_ROWS = 60
MOST_PICTURE_BYTES = 700_000


@dataclass(frozen=True)
class Report:
    """The three forms of a report; `twin` is what the JSON one holds."""

    html: str
    markdown: str
    twin: dict[str, Any]


def write(ledger: Path, target: Path) -> Path:
    """Write the report of a sweep: `target`, with .md and .json beside it.

    Args:
        ledger: The sweep's ledger; pictures are looked for in its folder.
        target: The page, NAME.html.

    Returns:
        `target`.

    Raises:
        LedgerError: there is nothing to show, or the files cannot be written.
    """
    return save(make(ledger), target)


def save(report: Report, target: Path) -> Path:
    """Write a report's three files; each is whole, or is not there.

    Raises:
        LedgerError: they cannot be written.
    """
    texts = {
        target: report.html,
        target.with_suffix(".md"): report.markdown,
        target.with_suffix(".json"): json.dumps(report.twin, indent=1) + "\n",
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            partial = path.with_name(f".{path.name}.partial")
            # a message may hold half a character, such as a strange file's name
            partial.write_bytes(text.encode("utf-8", "replace"))
            os.replace(partial, path)
    except OSError as error:
        raise LedgerError(
            f"{target}: expected a file that can be written; {error.strerror}. Correct it or pass "
            "--to."
        ) from None
    return target


def publish(target: Path, name: str, sweep: str, mlruns: Path) -> str:
    """Leave a saved report in MLflow, as artifacts of the sweep's run.

    Returns:
        Why not, if it cannot be; it is on the disk all the same.
    """
    from cnn_search import store  # imports mlflow

    files = [target, target.with_suffix(".md"), target.with_suffix(".json")]
    try:
        store.upload(store.open_store(mlruns, name), sweep, files)
    except TrackingError as error:
        return f"the page was not left in MLflow. {error}"
    return ""


def leave(outcome: Outcome, name: str, mlruns: Path, say: Callable[[str], None]) -> str:
    """Write the page at the end of a sweep, and leave it in MLflow.

    Args:
        outcome: How it ended.
        name: The sweep's.
        mlruns: The folder of MLflow's own store.
        say: Told why MLflow did not get it.

    Returns:
        Its path; empty if there is nothing to show.
    """
    target = outcome.folder / "report.html"
    if outcome.already and target.exists():
        return str(target)
    if not outcome.record.ranking():
        return ""
    write(outcome.folder / "ledger.jsonl", target)
    if not outcome.undelivered and (why := publish(target, name, outcome.folder.name, mlruns)):
        say(f"note: {why}")
    return str(target)


def make(ledger: Path) -> Report:
    """Return the report of a sweep.

    Raises:
        LedgerError: the ledger is damaged, or there is nothing to show.
    """
    record, sessions = read(ledger)
    found = answer(record)
    facts = analyse(record, sessions, found)
    context = {
        "title": f"{record.header['sweep']}: a better network than the tutorial's?",
        "name": record.header["sweep"],
        "answer": found,
        "unfinished": facts["unfinished"],
        "until": when(record.last_time),
        "tables": sections.first_tables(record, found, facts),
        "sections": sections.build(record, found, facts, prediction_grid(record, ledger.parent)),
    }
    return Report(
        render_html(context),
        render_markdown(context),
        _finite({"answer": found, **facts}),
    )


def prediction_grid(record: Record, folder: Path) -> Image:
    """Return predictions of the registered model, as a picture if it is on the disk."""
    title = "Predictions, wrong ones first: predicted class with its probability, true class"
    if not record.scored:
        return Image(title, "")
    trial = record.finals[record.scored["final"]]
    name = f"final {trial.number} ({trial.finalist}, seed {trial.seed})"
    path = trial.folder(folder) / "test_predictions.png"
    missing = f"In MLflow, artifact test_predictions.png of the run of {name}."
    try:
        if path.stat().st_size > MOST_PICTURE_BYTES:
            return Image(title, f"The picture is too large for this page. {missing}")
        picture = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return Image(title, f"The picture is not on this disk. {missing}")
    return Image(title, f"The registered model: {name}.", f"data:image/png;base64,{picture}")


def _environment(**options: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cnn_search.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.tests["figure"] = lambda part: isinstance(part, Figure)
    environment.tests["table"] = lambda part: isinstance(part, Table)
    return environment


def render_html(context: dict[str, Any]) -> str:
    """Return the page; everything in it that came from outside is escaped."""
    environment = _environment(autoescape=True)
    environment.filters["script"] = lambda value: Markup(_script(value))
    figures = [
        {"name": part.element, "data": part.plot["data"], "layout": part.plot["layout"]}
        for section in context["sections"]
        for part in section.parts
        if isinstance(part, Figure)
    ]
    return environment.get_template("report.html").render(
        context,
        figures=figures,
        most_rows=MOST_ROWS,
        plotly=Markup(plotly.offline.get_plotlyjs()),
    )


def _script(value: Any) -> str:
    """Return JSON that no HTML parser takes for the end of its script, or for a comment."""
    text = plotly.io.json.to_json_plotly(_finite(value), engine="json")
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def render_markdown(context: dict[str, Any]) -> str:
    """Return the Markdown twin; texts from outside are no markup in it."""
    environment = _environment(autoescape=True, finalize=_markdown)
    environment.filters["code"] = lambda text: Markup(" ".join(str(text).split()))
    text = environment.get_template("report.md").render(context, most_rows=MOST_MARKDOWN_ROWS)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _markdown(value: Any) -> Any:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = " ".join(value.split())
    text = re.sub(r"([\\`*\[\]|])|(?<!\w)(_)|(_)(?!\w)", r"\\\g<0>", text)
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _finite(value: Any) -> Any:
    """Return plain data without NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
