"""A job by itself: its progress, its changes and its end."""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from canvas import GenerationRequest
from canvas.dynamic_prompts import expand_pairs
from canvas.errors import CanvasError, GenerationCancelled
from canvas.jobs.job import ImageList, Job, wait_with_progress
from canvas.models.download import DownloadProgress
from canvas.request import GeneratedImage, ProgressUpdate

REQUEST = GenerationRequest("a fox")


def make_job(*nums_images: int) -> Job:
    """A generation of several requests with these numbers of images, or of one image."""
    requests = tuple(replace(REQUEST, num_images=number) for number in nums_images or [1])
    return Job("ann", "generate", "starter", requests[0], requests=requests)


def test_progress_is_that_of_all_requests() -> None:
    job = make_job(3, 2)
    job.report_progress(step=ProgressUpdate(1, 4, image_index=2, num_images=3))
    assert (job.progress.image_index, job.progress.num_images) == (2, 5)
    job.update(current=1)
    job.report_progress(step=ProgressUpdate(1, 4, image_index=0, num_images=2))
    assert (job.progress.image_index, job.progress.num_images) == (3, 5)


def test_a_job_has_the_images_of_its_requests() -> None:
    assert make_job(3, 2).num_images == 5
    assert [make_job(3, 2).first_image(index) for index in range(3)] == [0, 3, 5]
    assert Job("ann", "generate", "starter", replace(REQUEST, num_images=3)).num_images == 3
    assert Job("ann", "download", "starter").num_images == 0


def test_a_new_job_has_no_crash_and_no_other_job_was_taken_before_it() -> None:
    job = make_job()
    assert (job.attempts, job.skipped, job.current) == (0, 0, 0)
    assert not job.finished


def test_jobs_are_the_same_only_if_they_are_one() -> None:
    job = make_job()
    assert {job, job} == {job}
    assert job != replace(job)


def test_a_job_is_resumed_with_the_prompt_that_its_user_wrote() -> None:
    request = replace(REQUEST, prompt="a {b|c}", negative_prompt="__fog__")
    expanded = Job("ann", "generate", "starter", request)
    assert expand_pairs(
        expanded.resumable_request.prompt, expanded.resumable_request.negative_prompt, Path("wildcards")
    ) == [(request.prompt, request.negative_prompt)]
    dynamic = Job("ann", "generate", "starter", REQUEST, dynamic_request=request)
    assert dynamic.resumable_request is request


def test_the_progress_of_a_download_is_shown_until_the_model_is_loaded() -> None:
    job, download = make_job(), DownloadProgress("model", 1, 2, 3.0)
    job.report_progress(download=download)
    assert job.progress is download
    job.report_progress(status="running")
    assert (job.status, job.progress) == ("running", download)


def test_the_last_preview_stays_until_there_is_another() -> None:
    job, preview = make_job(), Image.new("RGB", (64, 64))
    job.report_progress(step=ProgressUpdate(1, 4, preview=preview))
    job.report_progress(step=ProgressUpdate(2, 4))
    assert job.preview is preview


def test_subscribe_yields_a_job_that_has_not_changed_yet() -> None:
    job, seen = make_job(), Queue[Job]()
    threading.Thread(target=lambda: seen.put(next(job.subscribe())), daemon=True).start()
    assert seen.get(timeout=10) is job


def test_a_notebook_shows_all_images_of_a_job() -> None:
    images = ImageList([GeneratedImage(REQUEST, "a fox", 1.0, "cpu", "float32")] * 2)
    assert images._repr_html_() == "\n"


@pytest.mark.parametrize("error", [None, CanvasError("Broken.")])
def test_a_script_waits_for_the_images_or_the_error(error: CanvasError | None) -> None:
    job = make_job()
    job.update(status="failed" if error else "done", error=error)
    if error is None:
        assert wait_with_progress(job) == []
        return
    with pytest.raises(CanvasError, match="Broken"):
        wait_with_progress(job)


def test_an_interrupt_cancels_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait_with_progress(job)
    assert job.status == "cancelled"


@pytest.mark.parametrize(("shell", "has_bar"), [(None, False), (object(), False), (SimpleNamespace(kernel=1), True)])
@pytest.mark.parametrize(("request_", "title"), [(GenerationRequest("a fox " * 20), "a fox "), (None, "starter")])
def test_a_progress_bar_is_shown_in_a_notebook_only(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: Any,
    has_bar: bool,
    request_: GenerationRequest | None,
    title: str,
) -> None:
    ipython = SimpleNamespace(get_ipython=lambda: shell) if shell is not None else None
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    job = Job("ann", "generate", "starter", request_)
    job.update(status="done")
    assert wait_with_progress(job) == []
    shown = capsys.readouterr().err
    assert (title in shown) == has_bar
    assert "a fox " * 7 not in shown


def test_after_a_restart_the_steps_are_of_the_remaining_images() -> None:
    job = make_job(4)
    job.report_progress(step=ProgressUpdate(1, 4, image_index=0, num_images=1))
    assert job.progress.image_index == 3


def test_loading_ends_the_progress_of_the_download() -> None:
    job = make_job()
    job.update(status="downloading", progress="half")
    job.report_progress(status="loading")
    assert (job.status, job.progress) == ("loading", None)


def test_it_starts_when_it_leaves_the_queue() -> None:
    job = make_job()
    job.update(attempts=1)
    assert job.started_at is None
    job.update(status="loading")
    started = job.started_at
    assert started is not None
    job.update(status="running")
    assert (job.started_at, job.finished_at) == (started, None)
    job.update(status="done")
    assert job.finished_at is not None


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_by_its_backend() -> None:
    queued, running = make_job(), make_job()
    running.update(status="running")
    queued.cancel()
    running.cancel()
    assert (queued.status, running.status) == ("cancelled", "running")
    assert running.cancelled.is_set()
    with pytest.raises(GenerationCancelled, match="before it started"):
        queued.wait()


def test_on_finish_is_called_once_before_subscribers_see_the_end() -> None:
    job, seen = make_job(), []
    job.on_finish = lambda finished: seen.append((finished.status, finished.version))
    job.update(status="running")
    assert seen == []
    job.update(status="done")
    job.update(status="done")
    assert seen == [("done", 1)]
    assert job.version == 2


def test_subscribe_merges_changes_and_yields_the_end() -> None:
    job = make_job()
    job.update(status="running", progress=ProgressUpdate(1, 4))
    job.update(progress=ProgressUpdate(2, 4))
    updates = job.subscribe()
    assert next(updates).progress == ProgressUpdate(2, 4)
    threading.Timer(0.05, job.update, kwargs={"status": "done"}).start()
    assert [seen.status for seen in updates] == ["done"]


def test_update_does_nothing_after_the_end() -> None:
    job = make_job()
    assert job.version == 0
    job.update(status="failed", error=CanvasError("no"))
    job.update(status="running")
    assert (job.status, job.version) == ("failed", 1)
    assert job.finished_at is not None
    with pytest.raises(CanvasError, match="no"):
        job.wait()


def test_a_finished_job_releases_preview_and_context() -> None:
    page = ContextVar[str]("page")
    page.set("request")
    job = make_job()
    assert page in job.context
    job.report_progress(status="running", step=ProgressUpdate(1, 4, preview=Image.new("RGB", (64, 64))))
    assert job.preview is not None
    assert job.progress == ProgressUpdate(1, 4)
    assert job.progress.preview is None
    job.update(status="failed", error=CanvasError("Broken."))
    assert job.preview is None
    assert page not in job.context


def test_wait_raises_after_the_timeout() -> None:
    with pytest.raises(CanvasError, match="still queued after 0 seconds"):
        make_job().wait(timeout=0)


def test_job_ids_are_random() -> None:
    assert len({make_job().id for _ in range(100)}) == 100
    assert len(make_job().id) == 32
