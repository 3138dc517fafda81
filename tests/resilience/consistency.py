"""Start and kill the programs of `programs.py`, and check that a data folder is consistent."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
def run_program(
    name: str, *arguments: object, log: Path | None = None, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a program and kill it at the end of the block; its stderr is appended to `log`."""
    command = [sys.executable, "-m", "tests.resilience.programs", name, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    stderr = log.open("a") if log else None
    env = {**os.environ, **environ}
    with (
        stderr or nullcontext(),
        subprocess.Popen(command, cwd=ROOT, text=True, env=env, stderr=stderr, **pipes) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def read_line(child: subprocess.Popen[str]) -> str:
    """The next line that a program prints."""
    assert child.stdout
    return child.stdout.readline().strip()


def read_url(child: subprocess.Popen[str]) -> str:
    """The URL of a program that serves; lines that Gradio prints before are skipped."""
    while (line := read_line(child)).split()[:1] != ["ready"]:
        assert child.poll() is None, "it ended before it served"
    return line.removeprefix("ready ")


def send_line(child: subprocess.Popen[str], line: object) -> str:
    """Send a line to a program; returns the next line that it prints."""
    assert child.stdin
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    return read_line(child)


def wait_for_exit(child: subprocess.Popen[str]) -> int:
    """Close a program's stdin and wait; returns its exit code."""
    child.communicate()
    return child.returncode


def kill_at_random(rng: random.Random, max_seconds: float, name: str, *arguments: object, saved: int = 0) -> list[str]:
    """Start a program, kill -9 it within `max_seconds` after it is ready and has `saved` images; returns its lines."""
    with run_program(name, *arguments) as child:
        lines = []
        for line in child.stdout or ():
            lines.append(line.strip())
            if "ready" in lines and sum(line.startswith("saved") for line in lines) >= saved:
                break
        assert "ready" in lines, f"{name} ended before it was ready"
        with suppress(subprocess.TimeoutExpired):
            child.wait(rng.uniform(0, max_seconds))
        child.kill()
        return lines + [line.strip() for line in (child.stdout or ()) if line.endswith("\n")]


def image_files(data_dir: Path) -> list[Path]:
    """Every image file under its final name."""
    return [
        path
        for path in (data_dir / "outputs").rglob("*")
        if path.suffix in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def assert_consistent(data_dir: Path, lines: Sequence[str] = ()) -> int:
    """Reconcile the folder and check files, rows and the `saved` lines; returns the image count."""
    for path in image_files(data_dir):
        with Image.open(path) as image:
            image.load()  # raises for an incomplete file
    assert integrity_error(data_dir / "ai_images.db") == ""
    with closing(Database(data_dir / "ai_images.db")) as database:
        ImageRepository(database, ImageStorage(data_dir / "outputs")).reconcile()
        rows = {row["filename"]: row for row in database.rows("SELECT * FROM generated_images")}
        assert len(rows) == database.rows("SELECT count(*) AS n FROM generated_images")[0]["n"]
        on_disk = {
            path.name: path
            for path in image_files(data_dir)
            if not {".trash", ".thumbnails"} & {parent.name for parent in path.parents}
        }
        assert set(on_disk) <= set(rows), "an image without a row"
        listed = {name for name, row in rows.items() if not row["missing"]}
        assert listed <= set(on_disk), "a row without its file"
    deleted = {line.split()[1] for line in lines if line.startswith("deleting")}
    for line in lines:
        if line.startswith("saved") and (name := line.split()[1]) not in deleted:
            content = on_disk[name].read_bytes()
            assert hashlib.sha256(content).hexdigest() == line.split()[2], "the file has changed"
    return len(listed)
