"""What the tests kill: `python -m tests.guarantees.programs KIND FOLDER …`, told line by line."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from canvas.errors import StorageError
from canvas.history.gallery import Gallery
from canvas.history.images import ImageFolder
from canvas.history.store import Store
from canvas.request import GeneratedImage
from tests.history.conftest import make_image

FORMATS = ("png", "jpeg", "webp")


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def gallery_in(data: Path) -> Gallery:
    return Gallery(Store(data / "ai_images.db"), ImageFolder(data / "outputs"))


def picture(number: int) -> GeneratedImage:
    noise = Image.effect_noise((256, 256), 60 + number % 40).convert("RGB")
    return make_image(image=noise, seed=number, image_format=FORMATS[number % 3])


def keep(data: Path, count: str = "100000") -> None:
    """Keep pictures as a studio does after it has reconciled; delete one now and then."""
    gallery = gallery_in(data)
    gallery.reconcile()
    tell("ready")
    for number in range(int(count)):
        kept = gallery.keep(picture(number))
        content = gallery.folder.path_of(kept).read_bytes()
        tell("kept", kept.filename, hashlib.sha256(content).hexdigest())
        if number % 5 == 4 and count == "100000":
            tell("deleting", kept.filename)
            gallery.delete([kept.id or 0], "local")


def migrate(data: Path) -> None:
    tell("ready")
    Store(data / "ai_images.db").close()
    tell("done")


def export(data: Path) -> None:
    from canvas.cli.archive import _write
    from canvas.history.export import export_zip
    from canvas.history.queries import Query

    gallery = gallery_in(data)
    tell("ready")
    while True:
        _write(data / "all.zip", export_zip(gallery.store, gallery.folder, Query(owner="local")))


def import_(data: Path, archive: str) -> None:
    from canvas.history.imports import import_zip

    gallery = gallery_in(data)
    gallery.reconcile()
    tell("ready")
    import_zip(gallery.store, gallery.folder, Path(archive), "local")
    tell("done")


def generate(data: Path) -> None:
    """Make pictures with the built-in model through the studio."""
    from canvas import GenerationRequest, Studio
    from canvas.settings import Settings

    settings = Settings(data_dir=data, cache_dir=data / "cache", device="cpu", dtype="float32")
    with Studio(settings) as studio:
        for seed in range(10_000):
            wish = GenerationRequest("a fox", seed=seed, num_inference_steps=2)
            [kept] = studio.generate(wish)
            content = studio.picture_path(kept.filename).read_bytes()
            tell("kept", kept.filename, hashlib.sha256(content).hexdigest())
            if not seed:
                tell("ready")  # loaded: from now on a kill meets steps, encoding, writing


def download(data: Path, url: str, repo_id: str) -> None:
    from canvas.engine import downloads
    from canvas.engine.hub import Hub
    from tests.engine.conftest import make_spec

    spec, hub = make_spec(repo_id), Hub(endpoint=url, cache_dir=data, token="none")  # noqa: S106
    plan = downloads.plan_download(spec, half_precision=False, hub=hub)
    tell("ready")
    downloads.download(spec, plan, lambda _: None, threading.Event(), hub=hub)
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
            gallery.keep(picture(number))
            outcome = "kept"
        except StorageError as error:
            outcome = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        outcomes.append(outcome)
    gallery.keep(replace(picture(0), owner="afterwards"))
    tell(json.dumps(outcomes))


PROGRAMS: dict[str, Callable[..., None]] = {
    "keep": keep,
    "migrate": migrate,
    "export": export,
    "import": import_,
    "generate": generate,
    "download": download,
    "fill": fill_disk,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
