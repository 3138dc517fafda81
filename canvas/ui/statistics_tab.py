"""The tab of figures: what was made when and how, what it occupies, and what can be cleaned up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.formatting import format_bytes, format_duration
from canvas.history.queries import Query
from canvas.history.statistics import Statistics
from canvas.ui.events import bind, current_owner
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import gettext

if TYPE_CHECKING:
    from canvas.history.images import UserGallery
    from canvas.studio import Studio

DAYS = 60  # of the chart by day
LONGEST = 8  # bars of a chart


class StatisticsTab:
    """Layout and behaviour of the tab."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._figures = panel("statistics")
        self._clean_up = gr.Accordion("Clean up", open=False, elem_id="clean-up")
        with self._clean_up:
            with gr.Row():
                self._age = gr.Number(
                    90, label="Older than (days)", precision=0, minimum=0, min_width=140
                )
                models = [("all models", ""), *((key, key) for key in studio.models)]
                self._model = gr.Dropdown(models, value="", label="Made with", min_width=160)
                self._keep = gr.Checkbox(True, label="Keep favourites", min_width=160)
            self._outcome = panel("clean-up-outcome")
        self._undo = gr.State("")

    def bind_events(self, tab: gr.Tab) -> None:
        """Connect what was laid out; call inside the page's context."""
        asked = {self._age, self._model, self._keep, self._undo}
        bind(tab.select, self.show, None, self._figures)
        bind(
            [tab.select, self._age.change, self._model.change, self._keep.change],
            self.preview,
            asked,
            {self._outcome},
            trigger_mode="always_last",
        )
        shown = {self._figures, self._outcome, self._undo}
        bind(self._outcome.click, self.clean, asked, shown)
        bind(self._figures.click, self.free, None, [self._figures, self._clean_up])

    def show(self, request: gr.Request) -> str:
        """The figures as they are now."""
        studio, owner = self._studio, current_owner(request)
        figures = studio.user_gallery(owner).statistics()
        return render(
            "statistics.html",
            figures=figures,
            days=days_of(figures, datetime.now(UTC).date()),
            charts=charts_of(figures),
            disk=None if studio.settings.is_public else self._disk(),
        )

    def _disk(self) -> dict[str, Any]:
        used = self._studio.disk_use()
        fetched = [key for key, spec in self._studio.models.items() if not spec.is_local]
        sizes = {key: self._studio.model_bytes_on_disk(key) for key in fetched}
        models = {key: size for key, size in sizes.items() if size}
        return {"pictures": used.pictures, "thumbnails": used.thumbnails, "models": models}

    def free(self, event: gr.EventData, request: gr.Request) -> tuple[str, Any]:
        """A button that frees a part of the disk, or erases everything of this owner."""
        if event.action == "pictures":  # these are not gone by one click: choose first
            return gr.skip(), gr.Accordion(open=True)
        if event.action == "erase":
            self._studio.user_gallery(current_owner(request)).delete_all()
        elif not self._studio.settings.is_public:
            if event.action == "thumbnails":
                self._studio.clear_thumbnails()
            elif event.action == "model":
                self._studio.delete_model(str(event.model))
        return self.show(request), gr.skip()

    def preview(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """What cleaning up would remove and how much that frees."""
        mine = self._studio.user_gallery(current_owner(request))
        return {self._outcome: self._would_go(mine, values)}

    def clean(
        self, values: dict[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """Remove what was shown, or bring it back."""
        mine = self._studio.user_gallery(current_owner(request))
        if event.action == "undo":
            mine.undo(values[self._undo])
            outcome = self._would_go(mine, values)
            return {self._figures: self.show(request), self._outcome: outcome, self._undo: ""}
        token, number = mine.delete_matching(self._query(values))
        outcome = render("cleaned.html", number=number, freed="", done=True)
        return {self._figures: self.show(request), self._outcome: outcome, self._undo: token}

    def _query(self, values: Mapping[Any, Any]) -> Query:
        query = Query(model_key=values[self._model] or None)
        if values[self._keep]:
            query = replace(query, favourite=False)
        days = min(max(values[self._age] or 0, 0), 36_500)
        return replace(query, until=datetime.now(UTC) - timedelta(days=days))

    def _would_go(self, mine: UserGallery, values: Mapping[Any, Any]) -> str:
        number, size = mine.totals(self._query(values))
        return render("cleaned.html", number=number, freed=format_bytes(size), done=False)


def days_of(figures: Statistics, today: date) -> list[dict[str, Any]]:
    """The latest days with their pictures, empty ones included; heights are per cent."""
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    counts = {day: figures.by_day.get(day.isoformat(), 0) for day in days}
    most = max(1, *counts.values())
    return [
        {"day": day.isoformat(), "pictures": count, "height": round(100 * count / most)}
        for day, count in counts.items()
    ]


def charts_of(figures: Statistics) -> list[dict[str, Any]]:
    """The charts with horizontal bars; lengths are per cent of the longest."""
    pace = {
        f"{row.model_key}, {row.width} × {row.height}": row.seconds
        for row in figures.by_model_and_size[:LONGEST]
    }
    votes = {
        f"{row.model_key}, {gettext(row.preset)}": (
            row.chosen / row.shown,
            gettext("{done} of {total}", done=row.chosen, total=row.shown),
        )
        for row in figures.votes[:LONGEST]
    }
    styles = {gettext(name or "none"): number for name, number in figures.by_style.items()}
    charts = [
        _chart(gettext("By model"), figures.by_model, "{:,.0f}"),
        _chart(gettext("By style"), styles, "{:,.0f}"),
        {**_chart(gettext("Seconds a picture"), pace, "{:.1f} s"), "kind": "seconds"},
    ]
    charts.append(_downloads(figures))
    if votes:
        bars = [(name, round(100 * share), words) for name, (share, words) in votes.items()]
        charts.append({"title": gettext("Chosen in comparisons"), "bars": bars, "kind": "votes"})
    return charts


def _downloads(figures: Statistics) -> dict[str, Any]:
    most = max((row.bytes for row in figures.downloads), default=1) or 1
    bars = []
    for row in figures.downloads[:LONGEST]:
        size, time = format_bytes(row.bytes), format_duration(row.seconds)
        words = gettext("{size} in {time}", size=size, time=time)
        if row.failed:
            words += ", " + gettext("{number} failed", number=row.failed)
        bars.append((row.model_key, round(100 * row.bytes / most), words))
    return {"title": gettext("Downloads"), "bars": bars, "kind": "downloads"}


def _chart(title: str, values: Mapping[str, float], words: str) -> dict[str, Any]:
    shown = list(values.items())[:LONGEST]
    most = max((value for _, value in shown), default=1) or 1
    bars = [(name, round(100 * value / most), words.format(value)) for name, value in shown]
    return {"title": title, "bars": bars, "kind": ""}
