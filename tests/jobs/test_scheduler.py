from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest, Studio
from canvas.backends.base import GenerationTask, WorkerCrashed, WorkerRemoved
from canvas.backends.remote_backends import RemoteBackends
from canvas.catalog import Catalog, ModelSpec
from canvas.engine.generate import GenerationInputs
from canvas.errors import CanvasError, DownloadCancelled, ModelNotFound
from canvas.formatting import format_bytes
from canvas.jobs.job import Job
from canvas.jobs.scheduler import MAX_ATTEMPTS, JobScheduler
from canvas.models.download import DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from canvas.settings import Settings
from tests.app_server import slow_down_steps
from tests.conftest import TINY_REPO, make_spec
from tests.hub_server import Fault, LocalHub

REQUEST = GenerationRequest("a fox", model_key="tiny-test", num_inference_steps=1)


@pytest.fixture
def online(settings: Settings, hub: LocalHub, tmp_path: Path) -> Iterator[Studio]:
    source = Hub(endpoint=hub.url, cache_dir=tmp_path / "hub", timeout=5)
    with Studio(settings, hub=source) as studio:
        studio.models["tiny-test"] = make_spec(TINY_REPO)
        yield studio


def events(studio: Studio) -> list[tuple[str, str]]:
    return [(event.event, event.status) for event in reversed(studio.database.model_events())]


def test_a_model_is_downloaded_loaded_and_recorded(online: Studio, tiny_repo: str) -> None:
    status = online.model_status("tiny-test", ask_hub=True)
    job = online.submit(REQUEST)
    seen = [(step.status, type(step.progress)) for step in job.subscribe()]
    [image] = job.wait()
    assert ("downloading", DownloadProgress) in seen
    assert len(image.model_revision) == 40
    assert events(online) == [("download", "complete"), ("load", "complete")]
    download = online.database.model_events()[-1]
    assert download.repo_id == tiny_repo
    assert download.bytes == status.missing_bytes
    assert online.model_status("tiny-test").location == "memory"
    assert online.delete_model("tiny-test") >= status.missing_bytes
    assert online.model_status("tiny-test").location == "hub"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_a_download_is_the_same_everywhere(
    settings: Settings, hub: LocalHub, tiny_repo: str, tmp_path: Path, dtype: str
) -> None:
    source = Hub(endpoint=hub.url, cache_dir=tmp_path / "hub", timeout=5)
    with Studio(settings.model_copy(update={"dtype": dtype}), hub=source) as studio:
        files = {name: path.stat().st_size for name, path in hub.files(tiny_repo).items()}
        halves = sum(size for name, size in files.items() if ".fp16.safetensors" in name and "checker" not in name)
        studio.models["tiny-test"] = make_spec(TINY_REPO)
        status = studio.model_status("tiny-test", ask_hub=True)
        job = studio.download_model("tiny-test")
        shown = {job.progress.bytes_total for _ in job.subscribe() if isinstance(job.progress, DownloadProgress)}
        downloaded = studio.database.model_events()[-1].bytes
        assert shown == {status.missing_bytes} == {downloaded}
        assert status.missing_bytes is not None and halves < status.missing_bytes < halves + 100_000
        assert status.download_text() == f"{format_bytes(status.missing_bytes)} download"


def test_waiting_and_running_jobs_are_counted(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down_steps(monkeypatch, 0.05)
    jobs = [studio.submit(GenerationRequest("a fox", num_inference_steps=50)) for _ in range(3)]
    for _ in jobs[0].subscribe():
        if jobs[0].status == "running":
            break
    assert studio._scheduler._count_jobs() == 3
    for job in jobs:
        job.cancel()


@pytest.mark.slow
def test_a_model_that_does_not_exist_is_recorded(online: Studio) -> None:
    with pytest.raises(ModelNotFound, match=TINY_REPO):
        online.generate(REQUEST)
    assert events(online) == [("download", "failed")]
    assert online.database.model_events()[0].error
    assert online.generate(GenerationRequest("a fox", num_inference_steps=1))


@pytest.mark.slow
def test_a_download_can_be_cancelled_while_images_are_generated(online: Studio, hub: LocalHub, tiny_repo: str) -> None:
    hub.faults[f"{tiny_repo}/unet/diffusion_pytorch_model.fp16.safetensors"] = Fault.stalls(after=100)
    job = online.download_model("tiny-test")
    assert next(seen for seen in job.subscribe() if seen.status == "downloading")
    assert online.generate(GenerationRequest("a fox", num_inference_steps=1))
    job.cancel()
    with pytest.raises(DownloadCancelled):
        job.wait(timeout=30)
    assert events(online)[-1] == ("download", "cancelled")


@pytest.mark.slow
def test_a_model_deleted_while_its_job_waits_is_downloaded_again(
    online: Studio, tiny_repo: str, tmp_path: Path
) -> None:
    online.download_model("tiny-test").wait()
    running = online.submit(GenerationRequest("a fox", num_inference_steps=150))
    waiting = online.submit(REQUEST)
    assert waiting.status == "queued"
    shutil.rmtree(tmp_path / "hub")  # by another program; `delete_model` waits for the device
    running.cancel()
    statuses = {update.status for update in waiting.subscribe()}
    assert waiting.wait()
    assert "downloading" in statuses
    assert events(online).count(("download", "complete")) == 2


class StubBackend:
    """Yields an image for each seed, or raises the next of `errors` after the first."""

    name, node = "Stub", "here"
    device_if_known = None

    def __init__(self) -> None:
        self.error: CanvasError | None = None
        self.errors: list[Exception] = []
        self.release = threading.Event()
        self.release.set()
        self.seeds: list[int] = []
        self.loaded: list[str] = []
        self.is_ready = True

    def wait_until_ready(self) -> bool:
        return self.is_ready

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        return False

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        self.loaded.append(spec.key)

    def generate(self, task: GenerationTask, on_progress: Any, cancelled: threading.Event) -> Iterator[Any]:
        on_progress(status="running")
        assert self.release.wait(60)
        for index in range(task.request.num_images):
            self.seeds.append((task.request.seed or 0) + index)
            yield object()
            if self.errors:
                raise self.errors.pop(0)

    def close(self) -> None:
        """There is nothing to close."""


@pytest.fixture
def stub() -> StubBackend:
    return StubBackend()


@pytest.fixture
def scheduler(settings: Settings, stub: StubBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobScheduler]:
    monkeypatch.setattr("canvas.jobs.scheduler.create_backends", lambda *_: [stub])
    scheduler = JobScheduler(
        settings,
        Catalog(MODELS),
        RemoteBackends(settings),
        save_image=lambda image, job: image,
        record_event=lambda event: None,
        load_inputs=lambda request, owner: GenerationInputs(),
    )
    yield scheduler
    stub.release.set()
    scheduler.close()


def make_job(*nums_images: int) -> Job:
    first = GenerationRequest("a fox", seed=0).with_defaults(MODELS["starter"])
    requests = tuple(replace(first, seed=10 * index, num_images=number) for index, number in enumerate(nums_images))
    return Job("ann", "generate", "starter", requests[0], requests=requests)


def test_a_job_of_a_crashed_worker_makes_only_the_remaining_images(scheduler: JobScheduler, stub: StubBackend) -> None:
    stub.errors = [WorkerCrashed("one"), WorkerCrashed("two")]
    job = make_job(2, 2)
    scheduler.put(job, ready=True)
    assert len(job.wait(60)) == 4
    assert stub.seeds == [0, 1, 10, 11]
    assert (job.attempts, job.node) == (2, "here")


def test_a_job_whose_workers_crash_fails_unless_they_were_removed(scheduler: JobScheduler, stub: StubBackend) -> None:
    stub.errors = [WorkerRemoved("left")] * 4 + [WorkerCrashed("crashed")] * MAX_ATTEMPTS
    job = make_job(16)
    scheduler.put(job, ready=True)
    with pytest.raises(WorkerCrashed, match="crashed"):
        job.wait(60)
    assert job.attempts == MAX_ATTEMPTS
    assert len(job.images) == 4 + MAX_ATTEMPTS


def test_jobs_ahead_are_those_of_the_same_queue(scheduler: JobScheduler, stub: StubBackend) -> None:
    stub.release.clear()
    running, waiting, last = make_job(1), make_job(1), make_job(1)
    scheduler.put(running, ready=True)
    next(job for job in running.subscribe() if job.status == "running")
    scheduler.put(waiting, ready=True)
    scheduler.put(last, ready=True)
    request = replace(REQUEST, backend="remote")
    remote = Job("ann", "generate", "starter", request, status="running")
    done = Job("ann", "generate", "starter", REQUEST, status="done")
    download = Job("ann", "download", "starter", status="downloading")
    jobs = [running, waiting, last, remote, done, download]
    assert scheduler.jobs_ahead_of(last, jobs) == [running, waiting]
    assert scheduler.jobs_ahead_of(running, jobs) == []
    assert scheduler.jobs_ahead_of(remote, jobs) == []


def test_a_backend_with_an_error_is_not_usable(scheduler: JobScheduler, stub: StubBackend) -> None:
    assert scheduler.usable_backends == [stub]
    stub.error = CanvasError("Another version.")
    assert scheduler.usable_backends == []


@pytest.mark.parametrize(("key", "is_ready", "loaded"), [("starter", True, ["starter"]), ("starter", False, []),
                                                         ("small", True, [])])  # fmt: skip
def test_warming_up_loads_a_model_that_is_stored(
    scheduler: JobScheduler,
    stub: StubBackend,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    is_ready: bool,
    loaded: list[str],
) -> None:
    stub.is_ready = is_ready
    if key == "small":
        monkeypatch.setattr(scheduler, "find_local", lambda spec: None)
    scheduler.warm_up(MODELS[key], wait=True)
    assert stub.loaded == loaded
