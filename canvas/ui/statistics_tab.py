"""The Statistics tab: charts of generated images, disk use, and cleaning up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import gradio as gr

from canvas.history.images import UserGallery
from canvas.history.queries import Query
from canvas.history.statistics import Statistics
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import format_bytes, format_duration, gettext, localize

NUM_DAYS = 60  # of the chart by day
MAX_BARS = 8  # of a chart
MAX_AGE = 36_500  # days
Bar = tuple[str, int, str]  # label, length in per cent, value as text


class StatisticsTab:
    """Layout and callbacks of the tab."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._statistics = panel("statistics")
        self._cleanup = gr.Accordion("Clean up", open=False, elem_id="cleanup")
        with self._cleanup:
            with gr.Row():
                self._age = gr.Number(90, label="Older than (days)", precision=0, minimum=0, min_width=140)
                models = [("all models", ""), *((key, key) for key in studio.models)]
                self._model = gr.Dropdown(models, value="", label="Model", min_width=160)
                self._keep = gr.Checkbox(True, label="Keep favourites", min_width=160)
            self._cleanup_result = panel("cleanup-result")
        self._undo = gr.State("")  # token of the last cleanup

    def bind_events(self, tab: gr.Tab) -> None:
        inputs = {self._age, self._model, self._keep, self._undo}
        bind(tab.select, self.show, None, self._statistics)
        bind(
            [tab.select, self._age.change, self._model.change, self._keep.change],
            self.preview_cleanup,
            inputs,
            {self._cleanup_result},
            trigger_mode="always_last",
        )
        outputs = {self._statistics, self._cleanup_result, self._undo}
        bind(self._cleanup_result.click, self.on_cleanup_click, inputs, outputs)
        bind(self._statistics.click, self.on_click, None, [self._statistics, self._cleanup])

    def show(self, http_request: gr.Request) -> str:
        statistics = self._gallery(http_request).statistics()
        return render(
            "statistics.html",
            statistics=statistics,
            days=daily_counts(statistics, datetime.now(UTC).date()),
            charts=charts(statistics),
            disk=None if self._studio.settings.is_public else self._disk_use(),
        )

    def _gallery(self, http_request: gr.Request) -> UserGallery:
        return self._studio.user_gallery(current_owner(http_request))

    def _disk_use(self) -> dict[str, Any]:
        use = self._studio.disk_use()
        models = self._studio.models
        sizes = {key: self._studio.model_bytes_on_disk(key) for key, spec in models.items() if not spec.is_local}
        downloaded = {key: size for key, size in sizes.items() if size}
        return {"images": use.images, "thumbnails": use.thumbnails, "models": downloaded}

    def on_click(self, event: gr.EventData, http_request: gr.Request) -> tuple[str, Any]:
        if event.action == "open_cleanup":  # images are deleted after a preview only
            return gr.skip(), gr.Accordion(open=True)
        if event.action == "delete_all":
            self._gallery(http_request).delete_all()
        elif not self._studio.settings.is_public:
            if event.action == "clear_thumbnails":
                self._studio.clear_thumbnails()
            elif event.action == "delete_model":
                self._studio.delete_model(str(event.model))
        return self.show(http_request), gr.skip()

    def preview_cleanup(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        return {self._cleanup_result: self._render_preview(self._gallery(http_request), values)}

    def on_cleanup_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """Delete the previewed images, or undo that."""
        gallery = self._gallery(http_request)
        if event.action == "undo":
            gallery.undo(values[self._undo])
            token, result = "", self._render_preview(gallery, values)
        else:
            token, number = gallery.delete_matching(self._query(values))
            result = render("cleanup_result.html", number=number, freed="", done=True)
        return {self._statistics: self.show(http_request), self._cleanup_result: result, self._undo: token}

    def _query(self, values: Mapping[Any, Any]) -> Query:
        days = min(max(values[self._age] or 0, 0), MAX_AGE)
        return Query(
            model_key=values[self._model] or None,
            favourite=False if values[self._keep] else None,
            until=datetime.now(UTC) - timedelta(days=days),
        )

    def _render_preview(self, gallery: UserGallery, values: Mapping[Any, Any]) -> str:
        number, size = gallery.totals(self._query(values))
        return render("cleanup_result.html", number=number, freed=format_bytes(size), done=False)


def daily_counts(statistics: Statistics, today: date) -> list[dict[str, Any]]:
    """The number of images of each of the last days; heights are per cent of the highest."""
    days = [today - timedelta(days=ago) for ago in reversed(range(NUM_DAYS))]
    counts = {day: statistics.by_day.get(day.isoformat(), 0) for day in days}
    highest = max(1, *counts.values())
    return [
        {"day": day.isoformat(), "images": count, "height": round(100 * count / highest)}
        for day, count in counts.items()
    ]


def charts(statistics: Statistics) -> list[dict[str, Any]]:
    """The bar charts, each with its title, bars and kind (a CSS class)."""
    styles = {gettext(name or "none"): number for name, number in statistics.by_style.items()}
    times = {
        f"{row.model_key}, {row.width} × {row.height}": row.seconds for row in statistics.by_model_and_size[:MAX_BARS]
    }
    result = [
        _chart(gettext("By model"), _bars(statistics.by_model, "{:,.0f}")),
        _chart(gettext("By style"), _bars(styles, "{:,.0f}")),
        _chart(gettext("Seconds per image"), _bars(times, "{:.1f} s"), "seconds"),
        _chart(gettext("Downloads"), _download_bars(statistics), "downloads"),
    ]
    if statistics.votes:
        result.append(_chart(gettext("Wins in comparisons"), _vote_bars(statistics), "votes"))
    return result


def _chart(title: str, bars: list[Bar], kind: str = "") -> dict[str, Any]:
    return {"title": title, "bars": bars, "kind": kind}


def _bars(values: Mapping[str, float], text: str) -> list[Bar]:
    shown = list(values.items())[:MAX_BARS]
    highest = max((value for _, value in shown), default=1) or 1
    return [(label, round(100 * value / highest), localize(text.format(value))) for label, value in shown]


def _download_bars(statistics: Statistics) -> list[Bar]:
    highest = max((row.bytes for row in statistics.downloads), default=1) or 1
    bars = []
    for row in statistics.downloads[:MAX_BARS]:
        text = gettext("{size} in {time}", size=format_bytes(row.bytes), time=format_duration(row.seconds))
        if row.failed:
            text += ", " + gettext("{number} failed", number=row.failed)
        bars.append((row.model_key, round(100 * row.bytes / highest), text))
    return bars


def _vote_bars(statistics: Statistics) -> list[Bar]:
    return [
        (
            f"{row.model_key}, {gettext(row.preset)}",
            round(100 * row.chosen / row.shown),
            gettext("{done} of {total}", done=row.chosen, total=row.shown),
        )
        for row in statistics.votes[:MAX_BARS]
    ]
