"""The events of the Models tab without a browser; test_models_tab.py has them in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.errors import CanvasError
from canvas.jobs.job import Job
from canvas.models.download import DownloadProgress
from canvas.models.own_models import OwnModels
from canvas.settings import Settings
from canvas.ui.models_tab import POLL_BUSY, POLL_IDLE, ModelsTab

DOWNLOAD = DownloadProgress(1_000_000, 8_000_000, 0.0, None)
MakeTab = Callable[..., ModelsTab]


@pytest.fixture
def make_tab(settings: Settings) -> Iterator[MakeTab]:
    studios = []

    def make(**changes: Any) -> ModelsTab:
        studios.append(Studio(settings.model_copy(update=changes)))
        with gr.Blocks(analytics_enabled=False):
            return ModelsTab(studios[-1])

    yield make
    for studio in studios:
        studio.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the buttons of the table do."""
    found: list[tuple[Any, ...]] = []
    for name in ("accept_licence", "download_model", "unload_model", "delete_model", "forget_job"):
        monkeypatch.setattr(Studio, name, lambda _, *arguments, name=name: found.append((name, *arguments)))
    monkeypatch.setattr(OwnModels, "remove", lambda _, key: found.append(("remove", key)))
    monkeypatch.setattr(OwnModels, "reset", lambda _, key: found.append(("reset", key)))
    monkeypatch.setattr(OwnModels, "edit", lambda _, key, values: found.append(("edit", key, values)))
    return found


def click(tab: ModelsTab, action: str, **fields: Any) -> str:
    """The dialog after a click."""
    event: Any = SimpleNamespace(action=action, **{"model": "tiny", "job": "abc", **fields})
    return tab.on_click(event, gr.Request())[1]


ACTIONS = [
    ("agree", [("accept_licence", "tiny"), ("download_model", "tiny", "local")], []),
    ("download", [("download_model", "tiny", "local")], [("download_model", "tiny", "local")]),
    ("dismiss_error", [("forget_job", "abc", "local")], [("forget_job", "abc", "local")]),
    ("unload", [("unload_model", "tiny")], []),
    ("delete", [("delete_model", "tiny")], []),
    ("remove_model", [("unload_model", "tiny"), ("remove", "tiny")], []),
    ("reset_defaults", [("reset", "tiny")], []),
    ("close", [], []),
]


@pytest.mark.parametrize("public", [False, True])
def test_each_button_does_one_thing_and_visitors_change_nothing(
    make_tab: MakeTab, calls: list[tuple[Any, ...]], public: bool
) -> None:
    tab = make_tab(public=public)
    for action, expected, of_visitors in ACTIONS:
        calls.clear()
        assert click(tab, action) == ""
        assert calls == (of_visitors if public else expected), action
    assert click(tab, "edit_defaults") == "" if public else "tiny" in click(tab, "edit_defaults")


def test_defaults_are_saved_or_the_dialog_says_why_not(make_tab: MakeTab, calls: list[tuple[Any, ...]]) -> None:
    tab = make_tab()
    values = {"num_inference_steps": "12", "guidance_scale": "2.5", "resolution": "512"}
    assert click(tab, "save_defaults", **values) == ""
    assert calls == [("edit", "tiny", {"num_inference_steps": 12.0, "guidance_scale": 2.5, "resolution": 512.0})]
    dialog = click(tab, "save_defaults", **{**values, "resolution": "big"})
    assert "must be a number" in dialog
    assert "must be a number" not in click(tab, "edit_defaults")


def rows(html: str) -> dict[str, str]:
    """The rows of the table by the title of the model."""
    return {row.partition(" <small>")[0].strip().removesuffix("</h3>").strip(): row for row in html.split("<h3>")[1:]}


def show(tab: ModelsTab, monkeypatch: pytest.MonkeyPatch, *jobs: Job) -> dict[str, str]:
    monkeypatch.setattr(Studio, "jobs", lambda *_: list(jobs))
    return rows(str(tab.poll("", gr.Request())[0]))


@pytest.mark.parametrize(
    ("kind", "status", "shown"),
    [
        ("download", "downloading", True),
        ("download", "queued", True),
        ("generate", "downloading", True),
        ("generate", "running", False),
        ("download", "done", False),
    ],
)
def test_a_download_is_shown_with_its_model(
    make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch, kind: Any, status: Any, shown: bool
) -> None:
    job = Job("local", kind, "mini-sd", status=status, progress=DOWNLOAD)
    table = show(make_tab(), monkeypatch, job)
    with_job = [row for row in table.values() if "1.0 MB of 8.0 MB" in row and 'aria-valuenow="12"' in row]
    assert len(with_job) == int(shown)
    assert all(f'data-job="{job.id}"' in row and "mini-sd" in row for row in with_job)


@pytest.mark.parametrize("progress", [None, DownloadProgress(0, 0, 0.0, None)])
def test_the_bar_is_empty_until_the_size_is_known(
    make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch, progress: object
) -> None:
    job = Job("local", "download", "mini-sd", status="downloading", progress=progress)
    table = show(make_tab(), monkeypatch, job)
    assert [row for row in table.values() if 'style="width: 0.0%"' in row]


def test_the_error_of_the_latest_job_stays_until_another_succeeds(
    make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = CanvasError("The disk is full.")
    failed = Job("local", "download", "mini-sd", status="failed", error=error)
    local = Job("local", "generate", "starter", status="failed", error=error)
    done = Job("local", "download", "mini-sd", status="done")
    tab = make_tab()
    [row] = [row for row in show(tab, monkeypatch, failed, local).values() if "The disk is full." in row]
    assert f'data-job="{failed.id}"' in row, "not that of the built-in model, which needs no download"
    assert not [row for row in show(tab, monkeypatch, failed, done).values() if "The disk is full." in row]


def test_the_table_is_sent_when_it_changes_and_polled_faster_meanwhile(
    make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, job = make_tab(), Job("local", "download", "mini-sd", status="downloading")
    monkeypatch.setattr(Studio, "jobs", lambda *_: [job, Job("local", "generate", "starter", status="done")])
    html, last, timer = tab.poll("", gr.Request())
    assert (last, timer["value"]) == (html, POLL_BUSY)
    assert tab.poll(html, gr.Request()) == (gr.skip(),) * 3
    job.status = "done"
    assert tab.poll(html, gr.Request())[2]["value"] == POLL_IDLE


def test_free_space_is_rounded_so_that_the_table_stays(make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = make_tab()
    for free, shown in (
        (4_660_000_000, "4.6 GB"),
        (9_990_000_000, "9.9 GB"),
        (10**10, "10.0 GB"),
        (12_900_000_000, "12.0 GB"),
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        html = "".join(show(tab, monkeypatch).values())
        assert set(re.findall(r"\(([\d.]+ GB) disk space free\)", html)) == {shown}


def test_workers_are_listed_where_there_are_several(make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = make_tab()
    workers = [SimpleNamespace(name="gpu:0", error=None), SimpleNamespace(name="gpu:1", error=CanvasError("It broke."))]
    monkeypatch.setattr(Studio, "models_of", lambda _, backend: ["tiny"] if backend.error else [])
    monkeypatch.setattr(Studio, "is_loaded", lambda *_: False)
    monkeypatch.setattr(Studio, "backends", workers[:1])
    assert "Workers" not in tab.poll("", gr.Request())[0]
    monkeypatch.setattr(Studio, "backends", workers)
    html = tab.poll("", gr.Request())[0]
    assert re.findall(r"<li><strong>(.*?)</strong> <span.*?>(.*?)</span>", html) == [
        ("gpu:0", "no model in memory"),
        ("gpu:1", "It broke."),
    ]
