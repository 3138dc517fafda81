"""What the tests kill: `python -m tests.resilience.programs KIND FOLDER …`, told line by line."""

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
from collections.abc import Callable
from contextlib import closing
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


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def gallery_in(data: Path) -> ImageRepository:
    return ImageRepository(Database(data / "ai_images.db"), ImageStorage(data / "outputs"))


def picture(number: int) -> GeneratedImage:
    noise = Image.effect_noise((256, 256), 60 + number % 40).convert("RGB")
    return make_image(image=noise, seed=number, image_format=FORMATS[number % 3])


def keep(data: Path, count: str = "100000") -> None:
    """Keep pictures as a studio does after it has reconciled; delete one now and then."""
    gallery = gallery_in(data)
    gallery.reconcile()
    tell("ready")
    for number in range(int(count)):
        kept = gallery.save(picture(number))
        content = gallery.storage.path_of(kept).read_bytes()
        tell("kept", kept.filename, hashlib.sha256(content).hexdigest())
        if number % 5 == 4 and count == "100000":
            tell("deleting", kept.filename)
            gallery.delete([kept.id or 0], "local")


def migrate(data: Path) -> None:
    tell("ready")
    Database(data / "ai_images.db").close()
    tell("done")


def export(data: Path) -> None:
    from canvas.cli.export_import import _write
    from canvas.history.export_zip import export_zip
    from canvas.history.queries import Query

    gallery = gallery_in(data)
    tell("ready")
    while True:
        _write(data / "all.zip", export_zip(gallery.database, gallery.storage, Query(owner="local")))


def import_(data: Path, archive: str) -> None:
    from canvas.history.import_zip import import_zip

    gallery = gallery_in(data)
    gallery.reconcile()
    tell("ready")
    import_zip(gallery.database, gallery.storage, Path(archive), "local")
    tell("done")


def generate(data: Path, first: str = "running") -> None:
    """Make pictures with the built-in model; ready when the first is `loading` or `running`."""
    from diffusers import StableDiffusionPipeline  # noqa: F401 - a kill shall meet no import

    with Studio(small_settings(data)) as studio:
        for seed in range(10_000):
            job = studio.submit(GenerationRequest("a fox", seed=seed, num_inference_steps=2))
            if not seed:
                next(change for change in job.subscribe() if change.status in (first, "done"))
                tell("ready")
            [kept] = job.wait()
            content = studio.image_path(kept.filename).read_bytes()
            tell("kept", kept.filename, hashlib.sha256(content).hexdigest())


def download(data: Path, url: str, repo_id: str) -> None:
    from canvas.models import download
    from canvas.models.hub_client import Hub
    from tests.conftest import make_spec

    spec, hub = make_spec(repo_id), Hub(endpoint=url, cache_dir=data, token="none")  # noqa: S106
    plan = download.plan_download(spec, half_precision=False, hub=hub)
    tell("ready")
    download.download(spec, plan, lambda _: None, threading.Event(), hub=hub)
    tell("done")


def fill_disk(data: Path) -> None:
    """Keep pictures while no file may grow beyond a limit; tell how each attempt ended."""
    gallery = gallery_in(data)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = []
    for number, limit in enumerate(
        [0, 1, 512, 4096, 10_000, *range(20_000, 300_000, 20_000), 10**7]
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            gallery.save(picture(number))
            outcome = "kept"
        except StorageError as error:
            outcome = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        outcomes.append(outcome)
    gallery.save(replace(picture(0), owner="afterwards"))
    tell(json.dumps(outcomes))


def small_settings(data: Path, **changes: Any) -> Settings:
    cache = data.parent / "cache"
    return Settings(data_dir=data, cache_dir=cache, device="cpu", dtype="float32", **changes)


def studio(data: Path) -> None:
    """Make a picture for each seed that is read, and tell how that ended."""
    try:
        with Studio(small_settings(data)) as studio:
            tell("ready")
            for line in sys.stdin:
                wish = GenerationRequest("a fox", seed=int(line), num_inference_steps=1)
                try:
                    [kept] = studio.generate(wish)
                    content = studio.image_path(kept.filename).read_bytes()
                    tell("kept", kept.filename, hashlib.sha256(content).hexdigest())
                except CanvasError as error:
                    tell("failed", error)
    except StorageError as error:
        tell("refused", error)


def serve(data: Path, *changes: str) -> None:
    """Serve until there is nothing more to read; `changes` are settings such as `public=yes`."""
    from canvas.server.launch import launch

    given = Settings.from_environment({}, **dict(change.split("=", 1) for change in changes))
    changed = {name: getattr(given, name) for name in (change.split("=")[0] for change in changes)}
    with Studio(small_settings(data, port=0, **changed)) as studio:
        page = launch(studio, block=False)
        tell("ready", (page.local_url or "").rstrip("/"))
        sys.stdin.read()
        page.close()


def limit_memory(room: int | None) -> None:
    """Allow so many bytes of addresses more than are taken, or (None) any number."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (hard if room is None else taken + room, hard))


def short(data: Path) -> None:
    """Serve; a number that is read is the room in MB, `under way` takes it from a job."""
    from canvas.server.launch import launch

    with Studio(small_settings(data, port=0)) as studio:
        page = launch(studio, block=False)
        tell("ready", (page.local_url or "").rstrip("/"))
        for line in sys.stdin:
            if line.strip() == "under way":
                told = lose_memory_under_way(studio)
            else:
                limit_memory(int(line) * 2**20 if line.strip() != "0" else None)
                told = "limited"
            tell(told)
        page.close()


def lose_memory_under_way(studio: Studio) -> str:
    release_memory()
    before = resident_memory()
    wish = GenerationRequest("a fox", width=512, height=512, num_inference_steps=20)
    job = studio.submit(wish)
    for change in job.subscribe():
        if change.status == "running" and change.progress is not None:
            limit_memory(0)
    limit_memory(None)
    return f"{job.status} {resident_memory() - before} {job.error}"


def crowd(data: Path) -> None:
    """Serve strangers; tell all jobs for each line that is read."""
    from canvas.server.launch import launch

    with Studio(small_settings(data, port=0, public=True)) as studio:
        page = launch(studio, block=False)
        tell("ready", (page.local_url or "").rstrip("/"))
        for _ in sys.stdin:
            tell(json.dumps([facts_of(job) for job in studio.jobs(None)]))
        page.close()


def facts_of(job: Job) -> dict[str, Any]:
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


def soak(data: Path, count: str, each: str) -> None:
    """Make `count` pictures, with a change of model after `each`; tell memory and handles."""
    folders = [data.parent / name for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(MODELS["starter"].name, folder)
    models = Catalog(
        {
            folder.name: replace(MODELS["starter"], name=str(folder), key=folder.name)
            for folder in folders
        }
        | {"starter": MODELS["starter"]}
    )
    with Studio(small_settings(data, memory_budget=1), models) as studio:
        for number in range(int(count)):
            model_key = folders[number // int(each) % 2].name
            wish = GenerationRequest(
                f"a fox {number}", model_key=model_key, width=128, height=128, num_inference_steps=1
            )
            studio.generate(wish)
            if number % 100 == 99 or number + 1 == int(count):
                release_memory()
                loads = sum(event.event == "load" for event in studio.database.model_events(10_000))
                handles = psutil.Process().num_fds()
                tell(json.dumps([number + 1, resident_memory(), handles, loads]))


def lock(data: Path) -> None:
    """Hold the database's lock until there is nothing more to read."""
    with closing(sqlite3.connect(data / "ai_images.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        tell("ready")
        sys.stdin.read()
        connection.execute("ROLLBACK")


def weak(kind: str, *arguments: str) -> None:
    """Run a program without root's right to write everywhere."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2  # prctl(2), capabilities(7)
    for capability in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-m", __spec__.name, kind, *arguments])  # noqa: S606


PROGRAMS: dict[str, Callable[..., None]] = {
    "keep": keep,
    "migrate": migrate,
    "export": export,
    "import": import_,
    "generate": generate,
    "download": download,
    "fill": fill_disk,
    "studio": studio,
    "serve": serve,
    "lock": lock,
    "crowd": crowd,
    "soak": soak,
    "short": short,
}

if __name__ == "__main__" and sys.argv[1] == "weak":
    weak(*sys.argv[2:])
elif __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
