"""The page of campaigns on the Dask dashboard: `/screening` of the scheduler's own Bokeh server.

A plugin of the scheduler hears the snapshots that drivers publish and keeps the newest of each
campaign. All open pages draw from it, so that another page costs the scheduler little, and each
sends to its browser only what changed. The page is a Bokeh application of its own beside those of
the dashboard, added as the dashboard adds its own. What is needed of `distributed` beyond
documented interfaces: `distributed.dashboard.core.BokehApplication`, the `template_variables` and
the environment of templates of `distributed.dashboard`, and `Scheduler.http_application`. Where
these are missing or different, there is no page or no link in the menu, with a note, and campaigns
run as ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from distributed import Client, SchedulerPlugin

from screening.cluster.panels import (
    STYLE,
    ClusterMemory,
    Histogram,
    ProcessMemory,
    arrange_histogram,
    build_best,
    build_failures,
    build_funnel,
    build_heading,
    build_invitation,
    build_notice,
    build_stages,
    build_uncertainty,
    build_workers,
    label_campaign,
)
from screening.cluster.publication import STATUS_TOPIC
from screening.errors import InputDataError
from screening.folder import STD_EDGES
from screening.status import CampaignStatus

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure
    from distributed import Scheduler

PAGE: Final = "screening"
"""Path of the page below the dashboard's, and its name in the menu."""

PAGE_TOPIC: Final = "screening-page"
"""Topic of the event in which a scheduler says whether it serves the page."""

UPDATE_SECONDS: Final = 1.0
"""Time between two updates of an open page."""

MOST_UPDATES: Final = 20
"""Updates of all open pages in a second: where there are more pages, each waits longer."""

MOST_CAMPAIGNS: Final = 20
"""Campaigns that a scheduler remembers, the newest."""

TEXTS: Final = (
    "heading", "funnel", "stages", "failures", "best", "uncertainty", "workers",
)  # fmt: skip
"""Panels of text, by the names that the template places them by."""

TEMPLATE: Final = """
{% extends "base.html" %}
{% block extra_resources %}
<style>
.navbar a[href="screening"] { background-color: rgba(234, 170, 109, 0.7); }
#screening { display: flex; flex-direction: column; gap: 12px; max-width: 1600px;
  margin: 0 auto; padding: 6px 0 24px; }
#screening .columns { display: grid; gap: 12px; align-items: start;
  grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); }
#screening .column { display: flex; flex-direction: column; gap: 12px; min-width: 0; }
@media screen and (max-width: 1000px) {
  #screening .columns { grid-template-columns: minmax(0, 1fr); } }
</style>
{% endblock %}
{% block content %}
{% from macros import embed %}
<div id="screening">
  <div>{{ embed(roots.campaigns) }}</div>
  <div>{{ embed(roots.heading) }}</div>
  <div class="columns">
    <div class="column">
      <div>{{ embed(roots.funnel) }}</div>
      <div>{{ embed(roots.stages) }}</div>
      <div>{{ embed(roots.failures) }}</div>
    </div>
    <div class="column">
      <div>{{ embed(roots.best) }}</div>
      <div>{{ embed(roots.spread) }}</div>
    </div>
  </div>
  <div>{{ embed(roots.workers) }}</div>
</div>
{{ plot_script }}
{% endblock %}
"""
"""The page around its panels; `base.html` is that of the dashboard, with its menu."""

CARD: Final[dict[str, str | None]] = {
    "background": "#ffffff",
    "border": "1px solid #e3e7ec",
    "border-radius": "4px",
    "padding": "12px 14px",
    "box-sizing": "border-box",
}
"""CSS of a panel's box."""

_logger = logging.getLogger(__name__)


class ScreeningPage(SchedulerPlugin):
    """Plugin of a scheduler that serves the page; registered again, it changes nothing.

    Attributes:
        board: What the pages draw from, once the plugin has started.
    """

    name = "screening-page"
    idempotent = True

    def __init__(self) -> None:
        self.board: Board | None = None
        self._stop: Callable[[], None] | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Serve the page, if the scheduler has a dashboard, and say so in an event."""
        if self.board is not None:  # Dask starts a plugin twice that a preload registers
            return
        self.board = Board(scheduler)
        for moment, content in scheduler.get_events(STATUS_TOPIC):
            self.board.take(content, time.time() - moment)
        try:
            prefix, note, self._stop = _serve(scheduler, self.board)
        except Exception as error:  # whatever a version of distributed does differently
            prefix, note = None, f"{type(error).__name__}: {error}"
        if note:
            _logger.warning("The page of screening on the dashboard: %s", note)
        scheduler.log_event(PAGE_TOPIC, {"prefix": prefix, "note": note})

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear what drivers publish."""
        if topic == STATUS_TOPIC and self.board is not None:
            self.board.take(msg)

    async def close(self) -> None:
        """Stop the page's timers when the scheduler closes."""
        if self._stop is not None:
            self._stop()


def install_page(client: Client, note: Callable[[str], None]) -> str | None:
    """Make sure that the scheduler serves the page of campaigns.

    The scheduler must be able to import `screening`. One that serves the page already is left as
    it is.

    Args:
        client: Client of the scheduler.
        note: Told why there is no page, or what it lacks.

    Returns:
        Address of the page; None if there is none, which never ends a campaign.
    """
    try:
        if not client.get_events(PAGE_TOPIC):
            client.register_plugin(ScreeningPage())
        _, said = client.get_events(PAGE_TOPIC)[-1]
        if said["note"]:
            note(f"the page of campaigns on the Dask dashboard: {said['note']}")
        link = client.dashboard_link
        return None if said["prefix"] is None else find_address(link, said["prefix"])
    except Exception as error:  # raised on the scheduler, where anything may be missing
        note(
            "the Dask scheduler cannot show the page of campaigns on its dashboard "
            f"({type(error).__name__}: {error}); it needs the same screening as this program, and "
            "`screening watch` shows the same in a terminal"
        )
        return None


def find_address(link: str, prefix: str) -> str:
    """Return the address of the page.

    Args:
        link: Address of the dashboard, as `distributed.dashboard.link` and proxies make it.
        prefix: What all paths of the dashboard begin with; empty for nothing.

    Examples:
        >>> find_address("http://host:8787/status", "/dask")
        'http://host:8787/dask/screening'
        >>> find_address("https://hub/user/ann/proxy/8787/status", "")
        'https://hub/user/ann/proxy/8787/screening'
    """
    parts = urlsplit(link)
    base = parts.path.rstrip("/").removesuffix("/status")
    if prefix and not base.endswith(prefix):
        base += prefix
    return urlunsplit((parts.scheme, parts.netloc, f"{base}/{PAGE}", "", ""))


@dataclass(frozen=True)
class Drawing:
    """What a page shows of one campaign.

    Attributes:
        texts: HTML of each panel that has something to say.
        histogram: The ensemble's standard deviations; None before any campaign.
    """

    texts: Mapping[str, str]
    histogram: Histogram | None


@dataclass
class _Run:
    """A campaign as its driver last told; `drawing` is what was made of it at `drawn`."""

    status: CampaignStatus
    heard: float
    drawn: float = 0.0
    drawing: Drawing | None = None


class Board:
    """The newest status of each campaign of a scheduler, drawn once for all open pages.

    Args:
        scheduler: The scheduler, asked for its memory and that of its workers.

    Attributes:
        open_pages: How many pages draw from it.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.open_pages = 0
        self._scheduler = scheduler
        self._runs: dict[str, _Run] = {}
        self._keys: dict[object, str] = {}
        self._begun = 0
        self._unreadable = 0

    def take(self, content: Any, age_seconds: float = 0.0) -> None:
        """Take what a driver published; what is no status is counted and said on the page.

        Args:
            content: Content of the event.
            age_seconds: How long ago it was published.
        """
        try:
            status = CampaignStatus.from_json(content)
        except InputDataError:
            self._unreadable += 1
            return
        if len(status.std_histogram) not in (0, len(STD_EDGES)):
            self._unreadable += 1
            return
        identity = (status.campaign, status.driver)
        if identity not in self._keys:
            self._begun += 1
            self._keys[identity] = str(self._begun)
        self._runs[self._keys[identity]] = _Run(status, time.monotonic() - age_seconds)
        if len(self._runs) > MOST_CAMPAIGNS:
            longest_silent = min(self._keys, key=lambda each: self._runs[self._keys[each]].heard)
            del self._runs[self._keys.pop(longest_silent)]

    def list_campaigns(self) -> list[tuple[str, str]]:
        """Return key and label of each campaign, the one that began last first."""
        return [(key, label_campaign(run.status)) for key, run in reversed(self._runs.items())]

    @property
    def seconds_between(self) -> float:
        """Time that an open page should let pass between two updates."""
        return max(UPDATE_SECONDS, self.open_pages / MOST_UPDATES)

    def draw(self, chosen: str) -> Drawing:
        """Draw a campaign.

        Args:
            chosen: Its key; where there is none such, the newest campaign is drawn.
        """
        if not self._runs:
            heading = build_invitation(self._scheduler.address, self._unreadable)
            return Drawing({"heading": heading}, None)
        run = self._runs.get(chosen) or self._runs[next(reversed(self._runs))]
        now = time.monotonic()
        # each of many pages updates once a second: only the first of them draws
        if run.drawing is None or now - run.drawn > 0.9 * UPDATE_SECONDS:
            run.drawn, run.drawing = now, self._draw(run, now)
        return run.drawing

    def _draw(self, run: _Run, now: float) -> Drawing:
        status = run.status
        heading = build_heading(status, now - run.heard) + build_notice(self._unreadable)
        workers = build_workers(status, self._measure_memory())
        if run.drawing is not None:
            return Drawing(
                {**run.drawing.texts, "heading": heading, "workers": workers},
                run.drawing.histogram,
            )
        texts = {
            "heading": heading,
            "funnel": build_funnel(status),
            "stages": build_stages(status),
            "failures": build_failures(status),
            "best": build_best(status),
            "uncertainty": build_uncertainty(status, STD_EDGES),
            "workers": workers,
        }
        return Drawing(texts, arrange_histogram(status.std_histogram, STD_EDGES))

    def _measure_memory(self) -> ClusterMemory:
        workers = {
            str(worker.name): ProcessMemory(worker.memory.process, worker.memory_limit or None)
            for worker in self._scheduler.workers.values()
        }
        own = self._scheduler.monitor.recent()["memory"]
        return ClusterMemory(ProcessMemory(int(own)), workers)


def _serve(scheduler: Scheduler, board: Board) -> tuple[str | None, str, Callable[[], None] | None]:
    """Add the page to the scheduler's Bokeh server and its menu.

    Returns:
        What all paths of the dashboard begin with, None where there is none; what is to be noted;
        and what stops the page.
    """
    try:
        from bokeh.server.tornado import BokehTornado
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
        from tornado.ioloop import IOLoop
    except ImportError as error:
        return None, f"the scheduler has no dashboard ({error})", None
    applications = scheduler.http_application.applications
    dashboards = [each for each in applications if isinstance(each, BokehTornado)]
    if not dashboards:
        return None, "the scheduler runs without a dashboard", None

    def open_page(_: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
        add_page(document, board, extra)

    prefix = dashboards[0].prefix
    variables = template_variables(scheduler)
    application = BokehApplication(
        {f"/{PAGE}": open_page}, scheduler, prefix=prefix, template_variables=variables
    )
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()
    pages = variables.get("pages")
    # the dictionary is made once for each scheduler, and the dashboard's pages hold the same list
    if not isinstance(pages, list) or template_variables(scheduler).get("pages") is not pages:
        note = f"its menu cannot be changed, so that no link leads to the page /{PAGE}"
        return prefix, note, application.stop
    if PAGE not in pages:
        pages.insert(1, PAGE)
    return prefix, "", application.stop


def add_page(document: Document, board: Board, extra: Mapping[str, Any]) -> None:
    """Make a new document show what a board says, and go on doing so.

    Args:
        document: The document of one open page.
        board: What it draws from.
        extra: Variables of the dashboard's template: its menu and the prefix of its paths.
    """
    _Page(board).add_to(document, extra)


class _Page:
    """One open page."""

    def __init__(self, board: Board) -> None:
        from bokeh.models import ColumnDataSource, InlineStyleSheet
        from bokeh.models.widgets import Div, Select

        self._board = board
        self._updated = float("-inf")
        style = InlineStyleSheet(css=STYLE)
        self._texts = {
            name: Div(
                name=name,
                stylesheets=[style],
                styles=CARD if name != "uncertainty" else {},
                sizing_mode="stretch_width",
                disable_math=True,
            )
            for name in TEXTS
        }
        self._bars = ColumnDataSource(
            data=_name_bars(arrange_histogram((), STD_EDGES)), name="bars"
        )
        self._plot = _plot_bars(self._bars)
        self._choice = Select(name="campaigns", title="Campaign", value="", visible=False)
        self._choice.on_change("value", self._switch)

    def add_to(self, document: Document, extra: Mapping[str, Any]) -> None:
        from bokeh.layouts import column
        from distributed.dashboard.components.scheduler import BOKEH_THEME, env

        self._spread = column(
            self._texts["uncertainty"],
            self._plot,
            name="spread",
            styles=CARD,
            sizing_mode="stretch_width",
        )
        for name, text in self._texts.items():
            if name != "uncertainty":
                document.add_root(text)
        document.add_root(self._spread)
        document.add_root(self._choice)
        document.title = "Screening"
        document.template = env.from_string(TEMPLATE)
        document.template_variables.update(extra)
        document.theme = BOKEH_THEME
        self._update()
        document.add_periodic_callback(self._update_if_due, round(1000 * UPDATE_SECONDS))
        self._board.open_pages += 1
        document.on_session_destroyed(self._leave)

    def _leave(self, session_context: Any) -> None:
        self._board.open_pages -= 1

    def _switch(self, attr: str, old: str, new: str) -> None:
        self._update()

    def _update_if_due(self) -> None:
        # a hair early, for the timer's ticks come neither sooner nor later than others'
        if time.monotonic() - self._updated >= self._board.seconds_between - UPDATE_SECONDS / 2:
            self._update()

    def _update(self) -> None:
        """Show what the board says now; what did not change is left alone."""
        self._updated = time.monotonic()
        campaigns = self._board.list_campaigns()
        newest = [("", f"the newest: {campaigns[0][1]}")] if campaigns else []
        options: Any = [*newest, *campaigns]
        if self._choice.options != options:
            self._choice.options = options
            self._choice.visible = len(campaigns) > 1
        drawing = self._board.draw(self._choice.value)
        for name, panel in self._texts.items():
            text = drawing.texts.get(name, "")
            if panel.text != text:
                panel.text = text
            if panel.visible != bool(text):
                panel.visible = bool(text)
        if self._spread.visible != (drawing.histogram is not None):
            self._spread.visible = drawing.histogram is not None
        if drawing.histogram is not None:
            bars = _name_bars(drawing.histogram)
            if self._bars.data != bars:
                self._bars.data = bars
            scored = any(drawing.histogram[2])
            if self._plot.visible != scored:
                self._plot.visible = scored


def _name_bars(histogram: Histogram) -> dict[str, Any]:
    return dict(zip(("left", "right", "count"), histogram, strict=True))


def _plot_bars(bars: ColumnDataSource) -> figure:
    from bokeh.models import DataRange1d, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot = figure(
        height=190,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_label="standard deviation of the ensemble, eV/atom",
        y_axis_label="candidates",
        y_range=DataRange1d(start=0),
    )
    plot.quad(
        left="left", right="right", top="count", bottom=0, source=bars,
        fill_color="#2b6ca8", line_color="#ffffff",
    )  # fmt: skip
    plot.add_tools(
        HoverTool(
            tooltips=[
                ("standard deviation", "@left{0.00} to @right{0.00} eV/atom"),
                ("candidates", "@count{0,0}"),
            ]
        )
    )
    plot.xaxis.formatter = NumeralTickFormatter(format="0.00")
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.yaxis.minor_tick_line_color = None
    plot.xgrid.grid_line_color = None
    plot.outline_line_color = None
    return plot
