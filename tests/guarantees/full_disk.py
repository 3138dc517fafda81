"""Writes everything that the program writes while the disk is full.

`python -m tests.guarantees.full_disk FOLDER` wants a small file system at FOLDER for itself.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import MODELS
from canvas.cli.archive import _write
from canvas.engine import downloads
from canvas.engine.hub import Hub
from canvas.errors import CanvasError
from canvas.history.keys import Keys
from canvas.history.queries import Query
from canvas.request import GeneratedImage
from tests.engine.conftest import make_spec
from tests.engine.hub import Fault, LocalHub
from tests.guarantees.fuzzing import small_png
from tests.guarantees.programs import small_settings, tell
from tests.guarantees.whole import assert_whole

ROOMS = (0, 4096, 40_000, 400_000)  # bytes that are left
LOCAL = Query(owner="local")


class Writer:
    """One studio, and all that it writes, each an action of its own."""

    def __init__(self, studio: Studio, hub: LocalHub) -> None:
        self.studio = studio
        self.data = studio.settings.data_dir
        self.mine = studio.collection("local")
        self.hub = hub
        self.number = 0

    def actions(self) -> list[Callable[[], object]]:
        return [
            *(self.picture, self.thumbnail, self.favourite, self.delete_and_undo, self.hand_in),
            *(self.key, self.export, self.take_in, self.download, self.start),
        ]

    def picture(self) -> None:
        self.number += 1
        self.studio.generate(GenerationRequest("a fox", seed=self.number, num_inference_steps=1))

    def first(self) -> GeneratedImage:
        return self.studio.recent(limit=1)[0]

    def thumbnail(self) -> None:
        self.studio.picture_path(self.first().filename, thumbnail=True)

    def favourite(self) -> None:
        for marked in (True, False) * 50:
            self.mine.favourite([self.first().id or 0], marked)

    def delete_and_undo(self) -> None:
        token, _ = self.mine.delete([self.first().id or 0])
        self.mine.undo(token)

    def hand_in(self) -> None:
        self.number += 1
        noise = Image.effect_noise((300, 300), 60 + self.number).convert("RGB")
        self.studio.shelf.hand_in(noise)

    def key(self) -> None:
        self.number += 1
        Keys(self.studio.store).make(f"robot{self.number}")

    def export(self) -> None:
        _write(self.data / "all.zip", self.mine.export(LOCAL))

    def take_in(self) -> None:
        self.number += 1
        outside = self.data.parent / "outside.zip"
        with zipfile.ZipFile(outside, "w") as archive:
            archive.writestr("a.png", small_png(parameters=f"a fox {self.number}\nSteps: 5"))
        done = self.mine.take_in(outside)
        for sentence in done.refused:
            raise CanvasError(sentence)
        assert done.added == 1

    def download(self, on_progress: Callable[[object], None] = lambda _: None) -> None:
        cache = self.data / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        here = Hub(endpoint=self.hub.url, cache_dir=cache, token="none")  # noqa: S106
        spec = make_spec("an/owner")
        plan = downloads.plan_download(spec, half_precision=False, hub=here)
        try:
            downloads.download(spec, plan, on_progress, threading.Event(), hub=here)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def download_while_it_fills(self) -> None:
        with ExitStack() as stack:
            self.download(lambda _: stack.enter_context(almost_full(self.data, 0)))

    def start(self) -> None:
        Studio(self.studio.settings).close()


@contextmanager
def almost_full(folder: Path, room: int) -> Iterator[None]:
    """Leave so many bytes of the file system for as long as the block takes."""
    filler = folder / f"{secrets.token_hex(4)}.filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(max(0, free - room)))
    try:
        yield
    finally:
        filler.unlink()


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except CanvasError as error:
        return str(error)
    return "done"


def main(data: Path) -> None:
    """Tell how each action ended in each room and then with all of it, and what is left."""
    model = data.parent / "model"
    shutil.copytree(MODELS["starter"].name, model)
    hub = LocalHub()
    hub.add("an/owner", model)
    for file in model.rglob("*.safetensors"):
        hub.faults[file.relative_to(model).as_posix()] = Fault.slow(0.01)
    outcomes: dict[str, list[str]] = {}
    with Studio(small_settings(data)) as studio:
        writer = Writer(studio, hub)
        for _ in range(3):
            writer.picture()
        for action in writer.actions():
            told = outcomes[action.__name__] = []
            for room in ROOMS:
                studio.gallery.folder.free_thumbnails()
                with almost_full(data, room):
                    told.append(tried(action))
            told.append(tried(action))
        outcomes["filling"] = [tried(writer.download_while_it_fills), tried(writer.download)]
    hub.close()
    left = [
        path.name for path in data.rglob("*") if path.suffix in ("", ".part") and path.is_file()
    ]
    tell(json.dumps({"outcomes": outcomes, "pictures": assert_whole(data), "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
