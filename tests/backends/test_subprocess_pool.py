"""Several workers over one queue, as real processes: what reaches the page, what a kill costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.backends.base import WorkerCrashed
from canvas.errors import GenerationCancelled, InvalidInput, OutOfMemory
from canvas.jobs.scheduler import MAX_ATTEMPTS
from canvas.request import ProgressUpdate
from canvas.settings import Settings, visible_gpus, worker_environment

LONG = GenerationRequest("an owl", seed=3, num_inference_steps=150, guidance_scale=2.0)
SHORT = replace(LONG, num_inference_steps=2)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Two workers for all tests: each begins a process that has to import torch."""
    folder = tmp_path_factory.mktemp("several")
    settings = Settings(
        data_dir=folder, cache_dir=folder / "cache", device="cpu", dtype="float32", workers=2
    )
    with Studio(settings) as studio:
        yield studio


def workers() -> list[int]:
    """The processes of the workers of this program."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "canvas.backends.subprocess_worker" in child.cmdline():
                found.append(child.pid)
    return found


def kill_workers() -> None:
    for pid in workers():
        os.kill(pid, signal.SIGKILL)


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as picture:
        return picture.convert("RGB")


def test_two_paint_at_once_and_tell_steps_and_previews(several: Studio) -> None:
    jobs = [several.submit(replace(LONG, seed=seed), owner) for seed, owner in ((1, "a"), (2, "b"))]
    together, previews = False, 0
    for job in jobs[0].subscribe():
        together |= [other.status for other in jobs] == ["running", "running"]
        previews += isinstance(job.progress, ProgressUpdate) and job.preview is not None
    [first], [second] = (job.wait() for job in jobs)
    assert together
    assert previews
    assert (first.request.seed, second.request.seed) == (1, 2)
    assert several.model_status("starter").location == "memory"
    assert several.device.name == "cpu"
    assert [event.model_name for event in several.database.model_events()] == ["starter"] * 2
    assert several.unload_model("starter")
    assert several.model_status("starter").location == "disk"


def test_the_pixels_are_those_of_one_process(several: Studio, studio: Studio) -> None:
    wish = replace(SHORT, num_images=2, style="cartoon")
    for one, other in zip(several.generate(wish), studio.generate(wish), strict=True):
        assert one.request == other.request
        difference = ImageChops.difference(
            pixels(several, one.filename), pixels(studio, other.filename)
        )
        # Sums over another number of threads are rounded in another order.
        assert max(high for _, high in difference.getextrema()) <= 1


def test_a_job_is_stopped_within_a_step_and_the_worker_goes_on(several: Studio) -> None:
    job = several.submit(LONG)
    for seen in job.subscribe():
        if isinstance(seen.progress, ProgressUpdate):
            job.cancel()
    with pytest.raises(GenerationCancelled):
        job.wait()
    before = workers()
    assert several.generate(SHORT)
    assert workers() == before


def test_a_wrong_request_fails_in_words_in_a_worker(several: Studio, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    entry = replace(several.models["starter"], key="broken", name=str(tmp_path / "broken"))
    several.models["broken"] = entry
    with pytest.raises(Exception, match=str(tmp_path / "broken")) as caught:
        several.generate(replace(SHORT, model_key="broken"))
    assert type(caught.value).__name__ == "ModelBroken"
    assert several.generate(SHORT)


def test_a_killed_worker_loses_no_job_and_no_picture_is_made_twice(several: Studio) -> None:
    long = several.submit(replace(LONG, num_images=3, num_inference_steps=40), "eve")
    others = [several.submit(replace(SHORT, seed=seed), "bob") for seed in range(4)]
    for seen in long.subscribe():
        if len(seen.images) == 1 and isinstance(seen.progress, ProgressUpdate):
            break
    kill_workers()
    assert [image.request.seed for image in long.wait()] == [3, 4, 5]
    for job in others:
        assert len(job.wait()) == 1
    assert len(several.recent("eve")) == 3
    assert len(several.recent("bob")) == 4
    assert 1 <= long.attempts < MAX_ATTEMPTS, (
        "the other, dead too, may have been handed it in between"
    )
    assert len(workers()) == 2


def give_room(room: int | None) -> None:
    """Let each worker take so many bytes of addresses more, or (None) any number."""
    for pid in workers():
        worker = psutil.Process(pid)
        _, hard = worker.rlimit(psutil.RLIMIT_AS)
        limit = hard if room is None else worker.memory_info().vms + room
        worker.rlimit(psutil.RLIMIT_AS, (limit, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited the Linux way")
def test_a_worker_that_ran_out_of_memory_paints_the_same_again(several: Studio) -> None:
    several.generate(SHORT)
    before = workers()
    wish = replace(SHORT, width=512, height=512, num_inference_steps=10)
    job = several.submit(wish)
    for seen in job.subscribe():
        if isinstance(seen.progress, ProgressUpdate) and not seen.finished:
            give_room(0)
    give_room(None)
    assert isinstance(job.error, OutOfMemory)
    for _ in range(2):
        assert several.generate(wish)
    assert workers() == before


def test_workers_that_died_while_idle_are_no_matter(several: Studio) -> None:
    several.generate(SHORT)
    kill_workers()
    assert several.generate(SHORT)


def test_a_job_that_kills_its_workers_fails_in_words(several: Studio) -> None:
    job = several.submit(LONG)
    for seen in job.subscribe():
        if seen.status == "running" and isinstance(seen.progress, ProgressUpdate):
            kill_workers()
    with pytest.raises(WorkerCrashed, match="ended in the middle"):
        job.wait()
    assert job.attempts == MAX_ATTEMPTS
    assert several.generate(SHORT)


def test_jobs_go_where_their_model_is(several: Studio) -> None:
    twin = several.settings.data_dir / "twin"
    twin.symlink_to(several.models["starter"].name)
    several.models["twin"] = replace(several.models["starter"], key="twin", name=str(twin))
    several.unload_model("starter")
    wishes = [replace(SHORT, model_key=key) for key in ("starter", "twin")]
    before = len(several.database.model_events())
    for job in [several.submit(wish) for wish in wishes]:
        job.wait()
    for wish in [*wishes, *reversed(wishes)] * 2:  # one at a time: both workers could take it
        several.generate(wish)
    loads = several.database.model_events()[: -before or None]
    assert sorted(event.model_name for event in loads) == ["starter", "twin"]


def test_workers_end_with_the_program(settings: Settings) -> None:
    program = (
        "import os, sys; from canvas import Studio; from canvas.settings import Settings\n"
        "import psutil\n"
        "studio = Studio(Settings.from_environment({}, data_dir=sys.argv[1], workers=2))\n"
        "print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(settings.data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    left = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert len(done.stdout.split()) == 2
    assert not alive


def test_each_worker_has_its_part_of_the_cores_and_a_gpu_of_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a")
    others = workers()
    with Studio(replace(settings, workers=3)) as studio:
        mine = set(workers()) - set(others)
        seen = [psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in mine]
        assert "1 core" in studio.device.reason
    assert sorted(seen) == ["4", "4", "GPU-5a"]


def test_a_worker_a_gpu_unless_told(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == ["1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == []
    assert worker_environment(1, {}, tmp_path)["CUDA_VISIBLE_DEVICES"] == "1"
    assert Settings(workers=3).worker_count == 3
    with pytest.raises(InvalidInput, match="workers"):
        Settings.from_environment({"CANVAS_WORKERS": "0"})
    assert Settings(device="cpu").worker_count == 1
