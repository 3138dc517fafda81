"""What has to hold of a data folder after whatever happened to it, and how to kill."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from PIL import Image

from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository
from canvas.history.repair import integrity_error
from canvas.image_formats import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def program(
    kind: str, *arguments: object, log: Path | None = None, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Start one of the programs; what it says on its terminal goes to `log`, where given."""
    command = [sys.executable, "-m", "tests.resilience.programs", kind, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    told = log.open("a") if log else None
    environ = {**os.environ, **environ}
    with (
        told or nullcontext(),
        subprocess.Popen(command, cwd=ROOT, text=True, env=environ, stderr=told, **pipes) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def heard(child: subprocess.Popen[str]) -> str:
    """The next line that a program tells."""
    assert child.stdout
    return child.stdout.readline().strip()


def address_of(child: subprocess.Popen[str]) -> str:
    """Where a program that serves does so; before that Gradio tells other things."""
    while (line := heard(child)).split()[:1] != ["ready"]:
        assert child.poll() is None, "it ended before it served"
    return line.removeprefix("ready ")


def asked(child: subprocess.Popen[str], line: object) -> str:
    """What a program tells after it was given a line."""
    assert child.stdin
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    return heard(child)


def ended(child: subprocess.Popen[str]) -> int:
    """Let a program end in its own time; its exit status."""
    child.communicate()
    return child.returncode


def killed(chance: random.Random, longest: float, kind: str, *arguments: object) -> list[str]:
    """Run a program until it is ready, kill -9 it within `longest` seconds; what it had told."""
    with program(kind, *arguments) as child:
        told = []
        for line in child.stdout or ():
            told.append(line.strip())
            if told[-1] == "ready":
                break
        assert "ready" in told, f"{kind} ended before it was ready"
        with suppress(subprocess.TimeoutExpired):
            child.wait(chance.uniform(0, longest))
        child.kill()
        return told + [line.strip() for line in (child.stdout or ()) if line.endswith("\n")]


def picture_files(data: Path) -> list[Path]:
    """Every file under its final name."""
    return [
        path
        for path in (data / "outputs").rglob("*")
        if path.suffix in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def assert_whole(data: Path, told: list[str] = ()) -> int:  # type: ignore[assignment]
    """Restart on the folder and look; returns the number of pictures."""
    for path in picture_files(data):
        with Image.open(path) as picture:
            picture.load()  # raises for a half-written one
    assert integrity_error(data / "ai_images.db") == ""
    with closing(Database(data / "ai_images.db")) as store:
        gallery = ImageRepository(store, ImageStorage(data / "outputs"))
        gallery.reconcile()
        rows = {row["filename"]: row for row in store.rows("SELECT * FROM generated_images")}
        assert len(rows) == store.rows("SELECT count(*) AS n FROM generated_images")[0]["n"]
        on_disk = {
            path.name: path
            for path in picture_files(data)
            if not {".trash", ".thumbnails"} & {parent.name for parent in path.parents}
        }
        assert set(on_disk) <= set(rows), "a picture without a row"
        promised = {name for name, row in rows.items() if not row["missing"]}
        assert promised <= set(on_disk), "a row that promises a picture which is not there"
    deleted = {line.split()[1] for line in told if line.startswith("deleting")}
    for line in told:
        if line.startswith("kept") and (name := line.split()[1]) not in deleted:
            content = on_disk[name].read_bytes()
            assert hashlib.sha256(content).hexdigest() == line.split()[2], "changed afterwards"
    return len(promised)
