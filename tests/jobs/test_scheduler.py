from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas import GenerationRequest, Studio
from canvas.errors import DownloadCancelled, ModelNotFound
from canvas.formatting import format_bytes
from canvas.models.download import DownloadProgress
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
