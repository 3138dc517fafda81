"""Programs that the tests kill: `python -m tests.resilience.programs NAME FOLDER …`.

Each prints lines such as `ready`, `saved FILENAME SHA256` or JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import MODELS, Catalog
from canvas.engine.system_info import release_memory, resident_memory
from canvas.errors import CanvasError, StorageError
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository
from canvas.jobs.job import Job
from canvas.request import GeneratedImage
from canvas.settings import Settings
from tests.history.conftest import make_image

FORMATS = ("png", "jpeg", "webp")


def emit(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def emit_saved(path: Path) -> None:
    emit("saved", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def open_repository(data_dir: Path) -> ImageRepository:
    return ImageRepository(Database(data_dir / "ai_images.db"), ImageStorage(data_dir / "outputs"))


def noise_image(number: int) -> GeneratedImage:
    noise = Image.effect_noise((256, 256), 60 + number % 40).convert("RGB")
    return make_image(image=noise, seed=number, image_format=FORMATS[number % 3])


def save(data_dir: Path, count: str = "100000") -> None:
    """Reconcile and save images; without a count also delete some."""
    repository = open_repository(data_dir)
    repository.reconcile()
    emit("ready")
    for number in range(int(count)):
        image = repository.save(noise_image(number))
        emit_saved(repository.path_of(image.filename))
        if number % 5 == 4 and count == "100000":
            emit("deleting", image.filename)
            repository.trash.delete([image.id or 0], "local")


def migrate(data_dir: Path) -> None:
    emit("ready")
    Database(data_dir / "ai_images.db").close()
    emit("done")


def export(data_dir: Path) -> None:
    from canvas.cli.console import write_file
    from canvas.history.export_zip import export_zip
    from canvas.history.queries import Query

    repository = open_repository(data_dir)
    emit("ready")
    while True:
        chunks = export_zip(repository.database, repository.storage, Query(owner="local"))
        write_file(data_dir / "all.zip", chunks)


def import_(data_dir: Path, archive: str) -> None:
    from canvas.history.import_zip import import_zip

    repository = open_repository(data_dir)
    repository.reconcile()
    emit("ready")
    import_zip(repository.database, repository.storage, Path(archive), "local")
    emit("done")


def generate(data_dir: Path, status: str = "running") -> None:
    """Generate images; ready when the first job is `loading` or `running`."""
    from diffusers import StableDiffusionPipeline  # noqa: F401 - not to be killed while importing

    with Studio(cpu_settings(data_dir)) as studio:
        for seed in range(10_000):
            job = studio.submit(GenerationRequest("a fox", seed=seed, num_inference_steps=2))
            if not seed:
                next(change for change in job.subscribe() if change.status in (status, "done"))
                emit("ready")
            [image] = job.wait()
            emit_saved(studio.image_path(image.filename))


def download(data_dir: Path, url: str, repo_id: str) -> None:
    from canvas.models import download
    from canvas.models.hub_client import Hub
    from tests.conftest import make_spec

    spec, hub = make_spec(repo_id), Hub(endpoint=url, cache_dir=data_dir, token="none")  # noqa: S106
    plan = download.plan_download(spec, hub=hub)
    emit("ready")
    download.download(spec, plan, lambda _: None, threading.Event(), hub=hub)
    emit("done")


def fill_disk(data_dir: Path) -> None:
    """Save images under growing limits of the file size; print the outcome of each attempt."""
    repository = open_repository(data_dir)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = []
    limits = [0, 1, 512, 4096, 10_000, *range(20_000, 300_000, 20_000), 10**7]
    for number, limit in enumerate(limits):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            repository.save(noise_image(number))
            outcome = "saved"
        except StorageError as error:
            outcome = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        outcomes.append(outcome)
    repository.save(replace(noise_image(0), owner="afterwards"))
    emit(json.dumps(outcomes))


def cpu_settings(data_dir: Path, **changes: Any) -> Settings:
    cache = data_dir.parent / "cache"
    return Settings(data_dir=data_dir, cache_dir=cache, device="cpu", dtype="float32", engine="torch", **changes)


def studio(data_dir: Path) -> None:
    """Generate an image for each seed that is read and print the outcome."""
    try:
        with Studio(cpu_settings(data_dir)) as studio:
            emit("ready")
            for line in sys.stdin:
                request = GenerationRequest("a fox", seed=int(line), num_inference_steps=1)
                try:
                    [image] = studio.generate(request)
                    emit_saved(studio.image_path(image.filename))
                except CanvasError as error:
                    emit("failed", error)
    except StorageError as error:
        emit("refused", error)


@contextmanager
def serving(data_dir: Path, **changes: Any) -> Iterator[Studio]:
    """Serve during the block, after printing `ready URL`."""
    from canvas.server.launch import launch

    with Studio(cpu_settings(data_dir, port=0, **changes)) as studio:
        page = launch(studio, block=False)
        emit("ready", (page.local_url or "").rstrip("/"))
        yield studio
        page.close()


def serve(data_dir: Path, *changes: str) -> None:
    """Serve until stdin ends; `changes` are settings such as `public=yes`."""
    values = dict(change.split("=", 1) for change in changes)
    parsed = Settings.from_environment({}, **values)
    with serving(data_dir, **{name: getattr(parsed, name) for name in values}):
        sys.stdin.read()


def serve_public(data_dir: Path) -> None:
    """Serve visitors; print all jobs for each line that is read."""
    with serving(data_dir, public=True) as studio:
        for _ in sys.stdin:
            emit(json.dumps([job_to_dict(job) for job in studio.jobs(None)]))


def job_to_dict(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "owner": job.owner,
        "owners": [image.owner for image in job.images],
        "prompt": job.request.prompt if job.request else "",
        "status": job.status,
        "error": str(job.error or ""),
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else "",
    }


def serve_with_low_memory(data_dir: Path) -> None:
    """Serve; each line sets the free memory in MB (0: no limit), or `exhaust` runs out of it."""
    with serving(data_dir) as studio:
        for line in sys.stdin:
            if line.strip() == "exhaust":
                emit(exhaust_memory(studio))
            else:
                limit_memory(int(line) * 2**20 if line.strip() != "0" else None)
                emit("limited")


def limit_memory(free: int | None) -> None:
    """Limit the address space to the current size plus `free` bytes; None removes the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (hard if free is None else used + free, hard))


def exhaust_memory(studio: Studio) -> str:
    """Let a running job run out of memory; its status, the growth in bytes and its error."""
    release_memory()
    before = resident_memory()
    request = GenerationRequest("a fox", width=512, height=512, num_inference_steps=20)
    job = studio.submit(request)
    for change in job.subscribe():
        if change.status == "running" and change.progress is not None:
            limit_memory(0)
    limit_memory(None)
    return f"{job.status} {resident_memory() - before} {job.error}"


def switch_models(data_dir: Path, count: str, interval: str) -> None:
    """Generate images, switching the model every `interval` of them; print memory and handles."""
    folders = [data_dir.parent / name for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(MODELS["starter"].name, folder)
    models = Catalog(
        {folder.name: replace(MODELS["starter"], name=str(folder), key=folder.name) for folder in folders}
        | {"starter": MODELS["starter"]}
    )
    with Studio(cpu_settings(data_dir, memory_budget=1), models) as studio:
        for number in range(int(count)):
            model_key = folders[number // int(interval) % 2].name
            request = GenerationRequest(
                f"a fox {number}", model_key=model_key, width=128, height=128, num_inference_steps=1
            )
            studio.generate(request)
            if number % 100 == 99 or number + 1 == int(count):
                release_memory()
                loads = sum(event.event == "load" for event in studio.database.model_events(10_000))
                handles = psutil.Process().num_fds()
                emit(json.dumps([number + 1, resident_memory(), handles, loads]))


def lock(data_dir: Path) -> None:
    """Hold the write lock of the database until stdin ends."""
    with closing(sqlite3.connect(data_dir / "ai_images.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        emit("ready")
        sys.stdin.read()
        connection.execute("ROLLBACK")


def run_unprivileged(name: str, *arguments: str) -> None:
    """Run a program without root's capability to write everywhere."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2  # prctl(2), capabilities(7)
    for capability in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-m", __spec__.name, name, *arguments])  # noqa: S606


PROGRAMS: dict[str, Callable[..., None]] = {
    "save": save,
    "migrate": migrate,
    "export": export,
    "import": import_,
    "generate": generate,
    "download": download,
    "fill-disk": fill_disk,
    "studio": studio,
    "serve": serve,
    "serve-public": serve_public,
    "serve-with-low-memory": serve_with_low_memory,
    "switch-models": switch_models,
    "lock": lock,
}

if __name__ == "__main__" and sys.argv[1] == "unprivileged":
    run_unprivileged(*sys.argv[2:])
elif __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
