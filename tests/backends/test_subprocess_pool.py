"""Worker processes behind one queue: images, progress, cancelling and crashes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
import pytest
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.backends.base import WorkerCrashed, WorkerRemoved
from canvas.backends.local import LocalBackend
from canvas.backends.subprocess_pool import create_backends
from canvas.backends.zerogpu import ZeroGpuBackend
from canvas.errors import GenerationCancelled, InvalidInput, OutOfMemory
from canvas.jobs.scheduler import MAX_ATTEMPTS
from canvas.platform import visible_gpus, worker_environment
from canvas.request import ProgressUpdate
from canvas.settings import Settings
from canvas.ui.models_tab import ModelsTab

pytestmark = pytest.mark.slow  # starting the workers takes seconds
LONG = GenerationRequest("an owl", seed=3, num_inference_steps=60, guidance_scale=2.0)
SHORT = replace(LONG, num_inference_steps=2)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Two workers for all tests, as each process has to import torch."""
    folder = tmp_path_factory.mktemp("workers")
    settings = Settings(
        data_dir=folder, cache_dir=folder / "cache", device="cpu", dtype="float32", engine="torch", workers=2
    )
    with Studio(settings) as studio:
        yield studio


def worker_pids() -> list[int]:
    """The process ids of the workers of this process."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "canvas.backends.subprocess_pool" in child.cmdline():
                found.append(child.pid)
    return found


def kill_workers() -> None:
    for pid in worker_pids():
        os.kill(pid, signal.SIGKILL)


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as file:
        return file.convert("RGB")


def test_two_jobs_run_at_once_with_steps_and_previews(pool: Studio) -> None:
    jobs = [pool.submit(replace(LONG, seed=seed), owner) for seed, owner in ((1, "a"), (2, "b"))]
    at_once, previews = False, 0
    for job in jobs[0].subscribe():
        at_once |= [other.status for other in jobs] == ["running", "running"]
        previews += isinstance(job.progress, ProgressUpdate) and job.preview is not None
    [first], [second] = (job.wait() for job in jobs)
    assert at_once
    assert previews
    assert (first.request.seed, second.request.seed) == (1, 2)
    assert pool.model_status("starter").location == "memory"
    assert [pool.models_of(backend) for backend in pool.backends] == [["starter"]] * 2
    assert pool.jobs_by_node == {("local", "done"): 2}
    with gr.Blocks():
        html = ModelsTab(pool)._render(pool.jobs("a"))
    assert re.findall(r"<strong>(Worker process \d)</strong> <span[^>]*>(.*?)</span>", html) == [
        ("Worker process 1", "starter"),
        ("Worker process 2", "starter"),
    ]
    assert pool.device.name == "cpu"
    assert [event.model_name for event in pool.database.model_events()] == ["starter"] * 2
    assert pool.unload_model("starter")
    assert pool.model_status("starter").location == "disk"


def test_images_equal_those_of_one_process(pool: Studio, studio: Studio) -> None:
    request = replace(SHORT, num_images=2, style="cartoon")
    for one, other in zip(pool.generate(request), studio.generate(request), strict=True):
        assert one.request == other.request
        difference = ImageChops.difference(pixels(pool, one.filename), pixels(studio, other.filename))
        # Sums depend on the number of threads: their rounding differs.
        assert max(high for _, high in difference.getextrema()) <= 1


def test_job_is_cancelled_within_a_step_and_the_worker_continues(pool: Studio) -> None:
    job = pool.submit(LONG)
    for update in job.subscribe():
        if isinstance(update.progress, ProgressUpdate):
            job.cancel()
    with pytest.raises(GenerationCancelled):
        job.wait()
    before = worker_pids()
    assert pool.generate(SHORT)
    assert worker_pids() == before


def test_error_of_a_worker_keeps_its_class_and_message(pool: Studio, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    entry = replace(pool.models["starter"], key="broken", name=str(tmp_path / "broken"))
    pool.models["broken"] = entry
    with pytest.raises(Exception, match="broken is no diffusers pipeline") as caught:
        pool.generate(replace(SHORT, model_key="broken"))
    assert type(caught.value).__name__ == "ModelCorrupted"
    assert pool.generate(SHORT)


def test_job_of_a_killed_worker_continues_without_repeating_images(pool: Studio) -> None:
    long = pool.submit(replace(LONG, num_images=3, num_inference_steps=20), "eve")
    others = [pool.submit(replace(SHORT, seed=seed), "bob") for seed in range(4)]
    for update in long.subscribe():
        if len(update.images) == 1 and isinstance(update.progress, ProgressUpdate):
            break
    kill_workers()
    assert [image.request.seed for image in long.wait()] == [3, 4, 5]
    for job in others:
        assert len(job.wait()) == 1
    assert len(pool.recent("eve")) == 3
    assert len(pool.recent("bob")) == 4
    assert 1 <= long.attempts < MAX_ATTEMPTS, "the other killed worker may have taken it in between"
    assert len(worker_pids()) == 2


def limit_memory(extra: int | None) -> None:
    """Limit the address space of each worker to `extra` more bytes, or (None) lift the limit."""
    for pid in worker_pids():
        worker = psutil.Process(pid)
        _, hard = worker.rlimit(psutil.RLIMIT_AS)
        limit = hard if extra is None else worker.memory_info().vms + extra
        worker.rlimit(psutil.RLIMIT_AS, (limit, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="rlimit of another process needs Linux")
def test_worker_generates_again_after_out_of_memory(pool: Studio) -> None:
    pool.generate(SHORT)
    before = worker_pids()
    request = replace(SHORT, width=512, height=512, num_inference_steps=10)
    job = pool.submit(request)
    for update in job.subscribe():
        if isinstance(update.progress, ProgressUpdate) and not update.finished:
            limit_memory(0)
    limit_memory(None)
    assert isinstance(job.error, OutOfMemory)
    for _ in range(2):
        assert pool.generate(request)
    assert worker_pids() == before


@pytest.mark.long
def test_idle_workers_that_crashed_are_replaced(pool: Studio) -> None:
    pool.generate(SHORT)
    kill_workers()
    assert pool.generate(SHORT)


@pytest.mark.long
def test_job_that_crashes_its_workers_fails(pool: Studio) -> None:
    job = pool.submit(LONG)
    for update in job.subscribe():
        if update.status == "running" and isinstance(update.progress, ProgressUpdate):
            kill_workers()
    with pytest.raises(WorkerCrashed, match="exited unexpectedly"):
        job.wait()
    assert job.attempts == MAX_ATTEMPTS
    assert pool.generate(SHORT)


def test_jobs_run_where_their_model_is_loaded(pool: Studio) -> None:
    twin = pool.settings.data_dir / "twin"
    twin.symlink_to(pool.models["starter"].name)
    pool.models["twin"] = replace(pool.models["starter"], key="twin", name=str(twin))
    pool.unload_model("starter")
    requests = [replace(SHORT, model_key=key) for key in ("starter", "twin")]
    before = len(pool.database.model_events())
    for job in [pool.submit(request) for request in requests]:
        job.wait()
    waiting = pool._scheduler._generate_queue._idle
    for request in [*requests, *reversed(requests)] * 2:
        while len(waiting) < 2:  # a worker that just finished a job is not free yet
            time.sleep(0.01)
        pool.generate(request)
    loads = pool.database.model_events()[: -before or None]
    assert sorted(event.model_name for event in loads) == ["starter", "twin"]


def test_a_closed_worker_is_not_started_again(settings: Settings) -> None:
    with Studio(settings.model_copy(update={"workers": 2})) as studio:
        backend, _ = studio._scheduler.backends
        assert backend.wait_until_ready()
        backend.close()
        spec = studio.models["starter"]
        local = studio._scheduler.find_local(spec)
        assert local is not None
        with pytest.raises(WorkerRemoved, match="was closed"):
            backend.load(spec, local)
        assert not backend.wait_until_ready()


def test_workers_exit_with_the_program(settings: Settings) -> None:
    program = (
        "import os, sys; from canvas import Studio; from canvas.settings import Settings\n"
        "import psutil\n"
        "studio = Studio(Settings.from_environment({}, data_dir=sys.argv[1], workers=2))\n"
        "print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(settings.data_dir)], capture_output=True, text=True, check=False
    )
    left = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert len(done.stdout.split()) == 2
    assert not alive


def test_each_worker_has_a_share_of_the_cores_and_its_own_gpu(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a")
    others = worker_pids()
    with Studio(settings.model_copy(update={"workers": 3})) as studio:
        mine = set(worker_pids()) - set(others)
        seen = [psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in mine]
        assert "1 core" in studio.device.reason
    assert sorted(seen) == ["4", "4", "GPU-5a"]


@pytest.mark.parametrize(
    ("changes", "expected"), [({"workers": 1}, LocalBackend), ({"zero_gpu": True, "workers": 2}, ZeroGpuBackend)]
)
def test_no_process_is_started_for_one_worker_or_on_zerogpu(
    settings: Settings, changes: dict[str, Any], expected: type[Any]
) -> None:
    [backend] = create_backends(settings.model_copy(update=changes), lambda event: None)
    assert type(backend) is expected


def test_one_worker_per_gpu_by_default(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == ["1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == []
    assert worker_environment(1, {}, tmp_path)["CUDA_VISIBLE_DEVICES"] == "1"
    assert Settings(workers=3).worker_count == 3
    with pytest.raises(InvalidInput, match="CANVAS_WORKERS"):
        Settings.from_environment({"CANVAS_WORKERS": "0"})
    assert Settings(device="cpu").worker_count == 1
