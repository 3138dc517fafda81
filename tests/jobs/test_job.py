"""A job by itself: its progress, its changes and its end."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import replace

import pytest
from PIL import Image

from canvas import GenerationRequest
from canvas.errors import CanvasError, GenerationCancelled
from canvas.jobs.job import Job
from canvas.request import ProgressUpdate

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
