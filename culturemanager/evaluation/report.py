"""The report: one HTML file without scripts or outside parts, and the same comparison for a terminal.

Whatever comes from pages, models or project files passes through Jinja2's autoescape. A content
security policy allows the file's one style sheet, by its hash, and images it carries itself; nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from culturemanager.evaluation import charts
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.findings import headline, remarks
from culturemanager.evaluation.provenance import Sources
from culturemanager.evaluation.results import SUBJECT, Evaluation
from culturemanager.evaluation.view import View
from culturemanager.storage import StageDraft


def write_report(draft: StageDraft, evaluation: Evaluation, sources: Sources, title: str) -> None:
    """Write `report.html` into the evaluation stage."""
    draft.write_bytes("report.html", render_report(evaluation, sources, title).encode())


def render_report(evaluation: Evaluation, sources: Sources, title: str) -> str:
    """The whole report as one HTML document."""
    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_text_of), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = charts.PALETTE_CSS + _text_of("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    view = View(evaluation, sources)
    return environment.get_template("report.html.j2").render(
        title=title, style=Markup(style), style_hash=f"sha256-{digest}", subject=SYSTEMS[SUBJECT].label,
        summary=evaluation.summary, headline=headline(evaluation.summary), remarks=remarks(evaluation.summary),
        systems=view.systems(), comparison=view.comparison(), cultures=view.by_culture(), tasks=view.by_task(),
        interference=view.interference(), router=view.router(), losses=view.losses(), provenance=view.provenance(),
        samples=view.samples())


def _text_of(name: str) -> str:
    return resources.files("culturemanager").joinpath(f"evaluation/{name}").read_text(encoding="utf-8")


def comparison_table(evaluation: Evaluation) -> Table:
    """The comparison for a terminal: systems by cultures, accuracies in percent."""
    summary = evaluation.summary
    cultures = [culture for culture in summary["cultures"] if culture in summary["items_by_culture"]]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="underline", caption_justify="left",
                  caption=f"accuracy in percent, {summary['items']} items, seed {summary['seed']}; unp.: unparsed answers")
    table.add_column("system", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    table.add_column("95%", justify="right", no_wrap=True)
    for short in _short_names([summary["cultures"][culture] for culture in cultures]):
        table.add_column(Text(short), justify="right", no_wrap=True)
    table.add_column("unp.", justify="right", no_wrap=True)
    best = max(summary["systems"], key=lambda name: summary["systems"][name]["accuracy"])
    for name, figures in summary["systems"].items():
        cells = [f"{100 * figures['by_culture'][culture]:.0f}" for culture in cultures]
        low, high = (f"{100 * value:.0f}" for value in figures["interval"])
        table.add_row(name, f"{100 * figures['accuracy']:.1f}", f"{low}\u2013{high}", *cells, str(figures["unparsed"]),
                      style="bold" if name == best else "")
    return table


def _short_names(names: Sequence[str]) -> list[str]:
    """Column heads: initials of several words, else three letters; names in full where these clash."""
    words = [name.removeprefix("the ").split() for name in names]
    short = ["".join(word[0] for word in own) if len(own) > 1 else own[0][:3] for own in words]
    return [head if short.count(head) == 1 else name for head, name in zip(short, names, strict=True)]
