"""Texts and values of the result panel, without a browser."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.errors import CanvasError
from canvas.jobs.job import Job
from canvas.models.download import DownloadProgress
from canvas.request import GeneratedImage, ProgressUpdate
from canvas.ui import result_panel
from canvas.ui.result_panel import PREVIEW_SIZE
from tests.app_server import save_image

REQUEST = GenerationRequest("a fox", width=256, height=192, seed=7, num_inference_steps=4)
IMAGE = GeneratedImage(REQUEST, "a fox", 2.5, "cpu", "float32", filename="fox.png")


def make_job(status: Any, progress: object = None, request: GenerationRequest = REQUEST) -> Job:
    return Job("local", "generate", request.model_key, request, status=status, progress=progress, requests=(request,))


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (ProgressUpdate(2, 8), "Step 2 of 8"),
        (ProgressUpdate(2, 8, seconds_left=4.2), "Step 2 of 8 · 4.2 s left"),
        (ProgressUpdate(2, 8, image_index=1, num_images=3), "Image 2 of 3 · Step 2 of 8"),
        (None, "Starting…"),
    ],
)
def test_progress_of_a_running_job(studio: Studio, progress: object, text: str) -> None:
    assert result_panel.progress_text(studio, make_job("running", progress)) == text


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, "Looking up starter…"),
        (DownloadProgress(0, 2_000_000, 0.0, None), "Downloading starter: 0 kB of 2.0 MB"),
        (
            DownloadProgress(1_000_000, 2_000_000, 500_000.0, 2.0),
            "Downloading starter: 1.0 MB of 2.0 MB · 500 kB/s · 2.0 s left",
        ),
        (DownloadProgress(0, 2_000_000, 0.0, None, "ann/lora"), "Downloading ann/lora: 0 kB of 2.0 MB"),
    ],
)
def test_progress_of_a_download(studio: Studio, progress: object, text: str) -> None:
    assert result_panel.progress_text(studio, make_job("downloading", progress)) == text


def test_progress_before_the_first_step(studio: Studio) -> None:
    assert result_panel.progress_text(studio, make_job("loading")) == "Loading starter into memory…"
    remote = replace(REQUEST, backend="remote")
    assert (
        result_panel.progress_text(studio, make_job("running", request=remote)) == "Waiting for Another Magic Canvas…"
    )


def test_a_cancelled_job_is_stopping(studio: Studio) -> None:
    job = make_job("running", ProgressUpdate(2, 8))
    job.cancelled.set()
    assert result_panel.progress_text(studio, job) == "Stopping…"
    assert 'class="progress indeterminate"' in result_panel.render_progress(studio, job)


@pytest.mark.parametrize(("finished", "pending"), [(0, 3), (1, 2), (3, 0), (4, 0)])
def test_each_image_of_a_batch_has_a_cell(studio: Studio, finished: int, pending: int) -> None:
    job = make_job("running", request=replace(REQUEST, num_images=4))
    job.images.extend([IMAGE] * finished)
    html = result_panel.render_progress(studio, job)
    assert (html.count("<img"), html.count("unfinished"), html.count("pending")) == (finished, 1, pending)
    assert "--columns: 2; --rows: 2" in html


def test_the_progress_bar_has_the_fraction_of_the_whole_job(studio: Studio) -> None:
    request = replace(REQUEST, num_images=2)
    job = make_job("running", ProgressUpdate(2, 4, image_index=1, num_images=2), request)
    assert 'aria-valuenow="75"' in result_panel.render_progress(studio, job)
    job = make_job("downloading", DownloadProgress(1, 4, 1.0, None))
    assert 'aria-valuenow="25"' in result_panel.render_progress(studio, job)
    job = make_job("downloading", DownloadProgress(0, 0, 0.0, None))
    assert 'class="progress indeterminate"' in result_panel.render_progress(studio, job), "the size is unknown"


def test_the_preview_becomes_clear_with_each_step(studio: Studio) -> None:
    first, half, last = (
        result_panel.render_progress(studio, make_job("running", progress))
        for progress in (None, ProgressUpdate(2, 4), ProgressUpdate(4, 4))
    )
    assert "--blur: 8px" in first
    assert "--blur: 4.0px" in half
    assert "--blur: 0.0px" in last


@pytest.mark.parametrize(("number", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (9, 3, 3)])
def test_images_are_shown_in_a_square_grid(studio: Studio, number: int, columns: int, rows: int) -> None:
    running = result_panel.render_progress(studio, make_job("running", request=replace(REQUEST, num_images=number)))
    finished = result_panel.render_images([IMAGE] * number)
    for panel in (running, finished):
        assert f"--ratio: {4 / 3}; --columns: {columns}; --rows: {rows}" in panel
    assert running.count('class="image-cell pending"') == number - 1


def test_the_preview_is_a_small_jpeg() -> None:
    header, _, content = result_panel.preview_url(Image.new("RGBA", (1024, 512))).partition(",")
    assert header == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (PREVIEW_SIZE, PREVIEW_SIZE // 2)


def test_the_summary_of_an_image_leaves_defaults_out() -> None:
    assert result_panel.image_summary(IMAGE, 2.5) == ["starter", "256 × 192", "seed 7", "4 steps", "2.5 s"]
    request = replace(REQUEST, style="anime", preset="turbo", backend="remote", num_inference_steps=1)
    image = replace(IMAGE, request=request, device="other.local")
    summary = result_panel.image_summary(image, 120)
    assert summary == ["starter", "anime", "256 × 192", "seed 7", "1 step", "other.local", "turbo", "2 min"]


def test_the_summary_of_a_request_counts_images() -> None:
    assert result_panel.request_summary(REQUEST) == "starter · 256 × 192"
    request = replace(REQUEST, style="anime", backend="remote", num_images=2)
    assert result_panel.request_summary(request, 3) == "starter · 256 × 192 · Another Magic Canvas · anime · 6 images"


def test_several_images_have_the_settings_of_the_first_and_the_time_of_all() -> None:
    second = replace(IMAGE, request=replace(REQUEST, seed=8))
    panel = result_panel.render_images([IMAGE, second])
    assert "seed 7" in panel
    assert "seed 8" not in panel
    assert "5.0 s" in panel


def test_the_preset_note_says_what_is_downloaded_and_what_is_missing(studio: Studio) -> None:
    request = GenerationRequest("a fox", model_key="dreamshaper", preset="turbo")
    note = result_panel.preset_note(studio, request)
    assert note.startswith("Turbo: ")
    assert note.endswith("MB download with the first image")
    assert result_panel.preset_note(studio, replace(request, preset="quality")) == ""
    assert result_panel.preset_note(studio, replace(request, backend="remote")) == ""
    note = result_panel.preset_note(studio, replace(request, model_key="mini-sd"))
    assert note.endswith("download with the first image · no distilled LoRA for mini-sd, so it takes more steps")


def test_presets_are_offered_with_their_time(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"quality": 90.0, "balanced": 0.04, "turbo": None}
    monkeypatch.setattr(Studio, "estimate", lambda _, request: times[request.preset])
    choices = result_panel.preset_choices(studio, REQUEST)
    assert choices == [("Quality\n2 min", "quality"), ("Balanced\nunder 0.1 s", "balanced"), ("Turbo", "turbo")]


def test_the_presets_take_their_own_steps(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings of the form belong to its own preset."""
    seen = {}
    monkeypatch.setattr(Studio, "estimate", lambda _, request: seen.setdefault(request.preset, request) and None)
    result_panel.preset_choices(studio, replace(REQUEST, guidance_scale=3.0))
    assert seen["quality"].num_inference_steps == REQUEST.num_inference_steps
    assert (seen["turbo"].num_inference_steps, seen["turbo"].guidance_scale) == (None, None)


def test_the_queue_says_what_is_ahead(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studio, "queue_position", lambda *_: 3)
    monkeypatch.setattr(Studio, "queue_wait", lambda *_: 30.0)
    assert result_panel.progress_text(studio, make_job("queued")) == "3 ahead, about 30 s"
    monkeypatch.setattr(Studio, "queue_position", lambda *_: 0)
    monkeypatch.setattr(Studio, "queue_wait", lambda *_: None)
    assert result_panel.progress_text(studio, make_job("queued")) == "Next in the queue"


def test_the_queue_lists_what_waits_with_the_time_of_all_its_prompts(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = make_job("queued")
    waiting.requests = (REQUEST, replace(REQUEST, prompt="a cat"))
    jobs = [waiting, make_job("running"), Job("local", "download", "tiny")]
    monkeypatch.setattr(Studio, "jobs", lambda *_: jobs)
    monkeypatch.setattr(Studio, "queue_position", lambda *_: 1)
    monkeypatch.setattr(Studio, "queue_wait", lambda *_: None)
    monkeypatch.setattr(Studio, "estimate", lambda *_: 2.5)
    html = result_panel.render_queue(studio, "local")
    assert "1 waiting" in html
    assert "1 ahead · takes about 5.0 s" in html
    monkeypatch.setattr(Studio, "estimate", lambda *_: None)
    assert "takes about" not in result_panel.render_queue(studio, "local")


def test_the_result_is_the_running_job_then_the_latest(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def current(*jobs: Job) -> str:
        monkeypatch.setattr(Studio, "jobs", lambda *_: list(jobs))
        return result_panel.render_current(studio, "local", None, "starter")

    queued, running, failed = (make_job(status) for status in ("queued", "running", "failed"))
    failed.error = CanvasError("The disk is full.")
    queued.request = replace(REQUEST, prompt="a cat")
    download = Job("local", "download", "tiny", status="failed")
    assert "Starting…" in current(queued, running, failed)
    assert "The disk is full." in current(failed, make_job("cancelled"), download)
    assert "The disk is full." not in current(make_job("cancelled"), download)
    assert "a cat" in current(queued)
    assert "an astronaut in space" in current(), "examples"


@pytest.mark.parametrize("selected", [0, 1, None])
def test_the_selected_one_of_the_recent_images_is_marked(studio: Studio, selected: int | None) -> None:
    ids = [save_image(studio, "local").id for _ in range(2)]
    html = result_panel.render_recent(studio, "local", None if selected is None else ids[selected])
    marked = [button for button in html.split("<button")[1:] if 'aria-current="true"' in button]
    assert len(marked) == (selected is not None)
    assert all(f'data-image="{ids[selected or 0]}"' in button for button in marked)
