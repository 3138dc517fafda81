"""The charts of the statistics, without a browser."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.history.comparisons import VoteCount
from canvas.history.statistics import DownloadStats, GenerationTimes, Statistics
from canvas.request import LOCAL_OWNER
from canvas.settings import Settings
from canvas.ui.statistics_tab import MAX_AGE, MAX_BARS, NUM_DAYS, StatisticsTab, charts, daily_counts
from tests.app_server import save_image

TODAY = date(2026, 3, 2)
STATISTICS = Statistics(
    images=1204,
    favourites=0,
    seconds=60.0,
    by_day={"2026-03-01": 3, "2026-03-02": 12, "2020-01-01": 99},
    by_model={"starter": 1200, "sd15": 4},
    by_style={"": 1200, "anime": 300},
    by_model_and_size=(GenerationTimes("starter", 256, 192, 1200, 0.25), GenerationTimes("sd15", 512, 512, 4, 20.0)),
    downloads=(DownloadStats("sd15", 2, 1, 2_000_000_000, 90.0), DownloadStats("tiny", 1, 0, 500_000_000, 9.0)),
    votes=(VoteCount("sd15", "turbo", chosen=3, shown=4),),
)


def test_what_is_cleaned_up_is_older_than_some_days_and_no_favourite(studio: Studio) -> None:
    with gr.Blocks():
        tab = StatisticsTab(studio)
    for age, days in ((30, 30), (0, 0), (None, 0), (-5, 0), (10**9, MAX_AGE)):
        query = tab._query({tab._age: age, tab._model: "starter", tab._keep: True})
        assert query.until is not None
        assert abs(datetime.now(UTC) - timedelta(days=days) - query.until) < timedelta(hours=1)
        assert (query.model_key, query.favourite) == ("starter", False)
    everything = tab._query({tab._age: 0, tab._model: "", tab._keep: False})
    assert (everything.model_key, everything.favourite) == (None, None)


def test_the_last_days_are_relative_to_the_highest() -> None:
    days = daily_counts(STATISTICS, TODAY)
    assert len(days) == NUM_DAYS
    assert days[0] == {"day": (TODAY - timedelta(days=NUM_DAYS - 1)).isoformat(), "images": 0, "height": 0}
    assert days[-2:] == [
        {"day": "2026-03-01", "images": 3, "height": 25},
        {"day": "2026-03-02", "images": 12, "height": 100},
    ]


def test_each_chart_has_its_values_as_text() -> None:
    assert {chart["title"]: chart["bars"] for chart in charts(STATISTICS)} == {
        "By model": [("starter", 100, "1,200"), ("sd15", 0, "4")],
        "By style": [("none", 100, "1,200"), ("anime", 25, "300")],
        "Seconds per image": [("starter, 256 × 192", 1, "0.2 s"), ("sd15, 512 × 512", 100, "20.0 s")],
        "Downloads": [("sd15", 100, "2.0 GB in 2 min, 1 failed"), ("tiny", 25, "500.0 MB in 9.0 s")],
        "Wins in comparisons": [("sd15, turbo", 75, "3 of 4")],
    }


def test_a_chart_shows_the_most_used_only() -> None:
    many = {f"model-{number}": 100 - number for number in range(MAX_BARS + 3)}
    by_model = charts(replace(STATISTICS, by_model=many))[0]
    assert [label for label, _, _ in by_model["bars"]] == list(many)[:MAX_BARS]


def test_without_anything_the_charts_are_empty() -> None:
    nothing = Statistics(0, 0, 0.0, {}, {}, {}, (), (), ())
    assert all(chart["bars"] == [] for chart in charts(nothing))
    assert {day["height"] for day in daily_counts(nothing, TODAY)} == {0}


def make_tab(studio: Studio) -> StatisticsTab:
    with gr.Blocks(analytics_enabled=False):
        return StatisticsTab(studio)


def click(action: str, **fields: Any) -> Any:
    return SimpleNamespace(action=action, **fields)


def test_a_cleanup_shows_what_it_deletes_and_can_be_undone(studio: Studio) -> None:
    tab = make_tab(studio)
    favourite, _, _ = (save_image(studio, LOCAL_OWNER).id or 0 for _ in range(3))
    studio.user_gallery(LOCAL_OWNER).favourite([favourite], True)
    values: dict[Any, Any] = {tab._age: 0, tab._model: "", tab._keep: True, tab._undo: ""}
    assert "2 images will be deleted" in tab.preview_cleanup(values, gr.Request())[tab._cleanup_result]
    assert len(studio.recent()) == 3
    updates = tab.on_cleanup_click(values, click("delete"), gr.Request())
    assert "2 images deleted." in updates[tab._cleanup_result]
    assert [image.id for image in studio.recent()] == [favourite]
    updates = tab.on_cleanup_click(values | {tab._undo: updates[tab._undo]}, click("undo"), gr.Request())
    assert "2 images will be deleted" in updates[tab._cleanup_result]
    assert updates[tab._undo] == ""
    assert len(studio.recent()) == 3
    assert "No images to delete" in tab.preview_cleanup(values | {tab._age: 1}, gr.Request())[tab._cleanup_result]


def test_all_images_of_the_owner_can_be_deleted(studio: Studio) -> None:
    tab = make_tab(studio)
    save_image(studio, LOCAL_OWNER)
    html, cleanup = tab.on_click(click("open_cleanup"), gr.Request())
    assert (html, cleanup.open) == (gr.skip(), True)
    html, cleanup = tab.on_click(click("delete_all"), gr.Request())
    assert "No images yet" in html
    assert cleanup == gr.skip()
    assert studio.recent() == []


@pytest.mark.parametrize("public", [False, True])
def test_only_the_owner_of_the_computer_sees_and_frees_its_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, public: bool
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Studio, "model_bytes_on_disk", lambda _, key: 2_000_000 if key == "tiny" else 0)
    monkeypatch.setattr(Studio, "clear_thumbnails", lambda _: done.append("thumbnails"))
    monkeypatch.setattr(Studio, "delete_model", lambda _, key: done.append(key))
    with Studio(settings.model_copy(update={"public": public})) as studio:
        tab = make_tab(studio)
        html = tab.show(gr.Request())
        tab.on_click(click("clear_thumbnails"), gr.Request())
        tab.on_click(click("delete_model", model="tiny"), gr.Request())
    assert ("tiny · 2.0 MB" in html) == (not public)
    assert ("Thumbnails" in html) == (not public)
    assert "small ·" not in html
    assert done == ([] if public else ["thumbnails", "tiny"])
