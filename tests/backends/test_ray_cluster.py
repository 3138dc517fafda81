"""Actors on two nodes of a Ray cluster: images, progress, cancelling, lost nodes, fair turns."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from canvas import GenerationRequest, Studio
from canvas.api.rest import StudioCollector
from canvas.backends import ray_cluster
from canvas.backends.base import GenerationTask, WorkerCrashed
from canvas.backends.ray_cluster import NodeBackend
from canvas.catalog import ASSETS, MODELS
from canvas.errors import CanvasError, GenerationCancelled, InvalidInput
from canvas.history.rows import ModelEvent
from canvas.jobs.scheduler import MAX_ATTEMPTS
from canvas.models.download import DownloadProgress, find_local
from canvas.models.hub_client import Hub
from canvas.request import ProgressUpdate
from canvas.settings import Settings
from tests.backends.cluster import LoopbackCluster, actor_processes, running_cluster
from tests.conftest import TINY_REPO, make_spec
from tests.hub_server import LocalHub
from tests.models.test_loras import make_lora

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'ray[default]'", allow_module_level=True)
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LONG = GenerationRequest("an owl", seed=3, num_inference_steps=150, guidance_scale=2.0)
SHORT = replace(LONG, num_inference_steps=2)
NUM_OWNERS, JOBS_EACH = 20, 10


def settings_for(folder: Path, address: str) -> Settings:
    return Settings(
        data_dir=folder,
        cache_dir=folder / "cache",
        device="cpu",
        dtype="float32",
        engine="torch",
        cluster=address,
        cores_per_worker=1,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    with running_cluster(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def studio_with_cluster(cluster: LoopbackCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with Studio(settings_for(tmp_path_factory.mktemp("cluster"), cluster.gcs_address)) as studio:
        studio.warm_up()
        wait_for(lambda: workers_with(studio, "starter") == ["node-1", "node-2"])
        yield studio


def workers_with(studio: Studio, model_key: str) -> list[str]:
    return sorted(backend.name for backend in studio.backends if model_key in studio.models_of(backend))


def wait_for(condition: Callable[[], bool], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as file:
        return file.convert("RGB")


def test_other_versions_are_refused(cluster: LoopbackCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray Client; the first test, as a process has one connection to Ray."""
    monkeypatch.setattr(ray_cluster, "code_version", lambda: "0.1.0 (00000000)")  # of the server
    with Studio(settings_for(tmp_path, cluster.address)) as studio:
        job = studio.submit(SHORT)
        wait_for(lambda: all(backend.error for backend in studio.backends))
        assert "the server has 0.1.0 (00000000). Install the same version" in str(studio.backends[0].error)
        assert job.status == "queued"


def test_two_nodes_draw_at_once_with_steps_and_previews(studio_with_cluster: Studio) -> None:
    studio = studio_with_cluster
    jobs = [studio.submit(replace(LONG, seed=seed), owner) for seed, owner in ((1, "a"), (2, "b"))]
    at_once, previews = False, 0
    for job in jobs[0].subscribe():
        at_once |= [other.status for other in jobs] == ["running", "running"]
        previews += isinstance(job.progress, ProgressUpdate) and job.preview is not None
    for job in jobs:
        job.wait()
    assert at_once
    assert previews
    assert studio.jobs_by_node == {("node-1", "done"): 1, ("node-2", "done"): 1}
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in StudioCollector(studio).collect()
        for sample in metric.samples
    }
    assert samples["canvas_node_jobs_total", "node-1", "done"] == 1
    assert samples["canvas_worker_models", "node-2", "node-2", "starter"] == 1


def test_images_equal_those_of_one_process(studio_with_cluster: Studio, studio: Studio) -> None:
    request = replace(SHORT, num_images=2, style="cartoon")
    for remote, local in zip(studio_with_cluster.generate(request), studio.generate(request), strict=True):
        assert remote.request == local.request
        difference = ImageChops.difference(pixels(studio_with_cluster, remote.filename), pixels(studio, local.filename))
        # Sums depend on the number of threads: their rounding differs.
        assert max(high for _, high in difference.getextrema()) <= 1


def test_lora_files_go_to_the_node(studio_with_cluster: Studio, studio: Studio) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(Path(MODELS["starter"].name) / "unet")
    images = {}
    for each in (studio_with_cluster, studio):
        each.settings.loras_dir.mkdir()
        make_lora(each.settings.loras_dir / "snow.safetensors", unet)
        [image] = each.generate(replace(SHORT, loras=(("snow", 0.8),)))
        images[each] = pixels(each, image.filename)
    [plain] = studio.generate(SHORT)
    effect = mean_difference(images[studio], pixels(studio, plain.filename))
    assert mean_difference(images[studio], images[studio_with_cluster]) < effect / 10


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def test_job_is_cancelled_within_a_step(studio_with_cluster: Studio) -> None:
    before = actor_processes()
    job = studio_with_cluster.submit(LONG)
    step_at_cancel = 0
    for update in job.subscribe():
        if isinstance(update.progress, ProgressUpdate) and update.progress.step >= 3 and not step_at_cancel:
            step_at_cancel = update.progress.step
            job.cancel()
    with pytest.raises(GenerationCancelled):
        job.wait()
    # One step may have been reported and another one computed before the message arrived.
    assert job.progress.step <= step_at_cancel + 2
    assert studio_with_cluster.generate(SHORT)
    assert actor_processes() == before


def test_200_jobs_of_20_owners_have_fair_turns(studio_with_cluster: Studio) -> None:
    studio = studio_with_cluster
    first = [studio.submit(LONG, "first") for _ in studio.backends]
    wait_for(lambda: all(job.status == "running" for job in first))
    owners = [f"owner-{number}" for number in range(NUM_OWNERS)]
    request = replace(SHORT, num_inference_steps=1)
    jobs = [studio.submit(request, owner) for owner in owners for _ in range(JOBS_EACH)]  # one owner after the other
    for job in [*first, *jobs]:
        job.wait()
    turns: Counter[str] = Counter()
    for job in sorted(jobs, key=lambda job: job.started_at or job.created_at):
        turns[job.owner] += 1
        # Two workers take jobs at once: the times of two turns may be the other way round.
        assert turns[job.owner] <= min(turns[owner] for owner in owners) + 2
    assert all(len(studio.recent(owner)) == JOBS_EACH for owner in owners)


def test_jobs_of_a_killed_node_run_again_and_a_new_node_joins(
    studio_with_cluster: Studio, cluster: LoopbackCluster
) -> None:
    studio = studio_with_cluster
    request = replace(LONG, num_inference_steps=40, num_images=3)
    jobs = [studio.submit(replace(request, seed=100 * number), f"killed-{number}") for number in range(4)]
    for _ in jobs[1].subscribe():
        if all(len(job.images) >= 1 for job in jobs[:2]):
            break
    cluster.kill("node-2")
    for job in jobs:
        assert len(job.wait(300)) == 3
    for number, job in enumerate(jobs):
        stored = studio.recent(job.owner)
        assert sorted(image.request.seed for image in stored) == [100 * number + each for each in range(3)]
        assert job.attempts < MAX_ATTEMPTS
    assert sum(job.attempts for job in jobs) == 1
    assert [backend.name for backend in studio.backends] == ["node-1"]
    cluster.add("node-3")
    wait_for(lambda: workers_with(studio, "starter") == ["node-1", "node-3"])


def test_job_that_crashes_its_workers_fails(studio_with_cluster: Studio) -> None:
    job = studio_with_cluster.submit(LONG)
    for update in job.subscribe():
        if update.status == "running" and isinstance(update.progress, ProgressUpdate):
            for process in actor_processes():
                process.kill()
    with pytest.raises(WorkerCrashed, match="ended unexpectedly"):
        job.wait()
    assert job.attempts == MAX_ATTEMPTS
    assert studio_with_cluster.generate(SHORT)


def test_a_model_is_downloaded_once_per_node(settings: Settings, hub: LocalHub, tiny_repo: str, tmp_path: Path) -> None:
    """Two actors of one node, whose cache lacks the model that the server has."""
    node_hub = Hub(endpoint=hub.url, cache_dir=tmp_path / "node", timeout=5)
    events: list[ModelEvent] = []
    seen: list[str | None] = []

    def on_progress(
        *, status: str | None = None, step: ProgressUpdate | None = None, download: DownloadProgress | None = None
    ) -> None:
        seen.append("bytes" if download else status)

    spec = make_spec(TINY_REPO)
    backends = [NodeBackend(settings, events.append, node_hub, 1, str(ASSETS), tmp_path / "files") for _ in range(2)]
    request = replace(SHORT, model_key="tiny-test", width=64, height=64).with_defaults(spec)
    local = find_local(MODELS["starter"])  # the server's: the node has paths of its own
    threads = [
        threading.Thread(
            target=lambda each=backend: list(
                each.generate(GenerationTask(request, spec, local), on_progress, threading.Event())
            )
        )
        for backend in backends
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(event.event, event.status) for event in events].count(("download", "complete")) == 1
    assert [event.event for event in events].count("load") == 2
    assert "bytes" in seen
    assert find_local(spec, hub=node_hub)


def test_settings_without_effect_and_a_missing_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="CANVAS_WORKERS must be unset with a cluster"):
        Settings.from_environment({"CANVAS_CLUSTER": "auto", "CANVAS_WORKERS": "2"})
    with pytest.raises(InvalidInput, match="Cores per worker must be unset without a cluster"):
        Settings(cores_per_worker=2)
    with pytest.raises(InvalidInput, match="Cluster must be auto, HOST:PORT or ray://HOST:PORT"):
        Settings(cluster="local")
    with pytest.raises(CanvasError, match="cannot be used"):
        Studio(settings_for(tmp_path, "ray://127.0.0.1:1"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match="needs the package ray"):
        Studio(settings_for(tmp_path, "auto"))
