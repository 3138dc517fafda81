"""Many rows for the gallery; `python -m tests.history.bulk_data` measures queries on them."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository, UserGallery
from canvas.history.queries import Query
from canvas.request import GeneratedImage

from .conftest import make_image

THINGS = ["fox", "owl", "whale", "castle", "robot", "garden", "dragon", "bicycle", "teapot"]
PLACES = ["snow", "desert", "forest", "city", "sea", "mountains", "space", "library"]
COLOURS = [f"colour{number}" for number in range(500)]
START = datetime(2024, 1, 1, tzinfo=UTC)


def many_images(count: int, seed: int = 1) -> Iterator[GeneratedImage]:
    """Images without files of four owners, with common and rare words, over two years."""
    rng = random.Random(seed)
    for number in range(count):
        thing, place = rng.choice(THINGS), rng.choice(PLACES)
        words = " ".join(rng.sample(COLOURS, 12))
        rare = " unicorn" if number % 1000 == 0 else ""
        yield make_image(
            prompt=f"a picture of a {thing} in the {place}, {words}{rare}",
            model_key=rng.choice(["starter", "tiny", "small", "dreamshaper"]),
            style=rng.choice(["none", "anime", "fantasy"]),
            seed=number,
            width=rng.choice([512, 768]),
            height=512,
            filename=f"{number:032x}.png",
            filepath=f"outputs/x/{number:032x}.png",
            file_size=rng.randrange(10**6),
            generation_time=rng.random() * 100,
            created_at=START + timedelta(seconds=rng.randrange(2 * 365 * 86400)),
            owner="local" if number % 10 else f"visitor{number % 3}",
            favourite=number % 50 == 0,
            image=None,
        )


def queries(rng: random.Random) -> dict[str, Query]:
    """One query of each kind, each for a random page."""
    last = datetime(2025, 6, 1, tzinfo=UTC)
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    return {
        "page": Query(owner="local", offset=rng.randrange(89_000)),
        "page of all": Query(offset=rng.randrange(99_000)),
        "oldest": Query(owner="local", sort="oldest", offset=rng.randrange(2000)),
        "largest": Query(owner="local", sort="largest", offset=rng.randrange(2000)),
        "slowest": Query(owner="local", sort="slowest"),
        "model sort": Query(owner="local", sort="model"),
        "favourites": Query(owner="local", favourite=True, offset=rng.randrange(1500)),
        "filters": Query(
            owner="local", model_key="tiny", style="anime", task="text_to_image",
            size=(512, 512), since=START, until=last, offset=rng.randrange(3000),
        ),
        "task": Query(owner="local", task="text_to_image", offset=rng.randrange(89_000)),
        "no such task": Query(owner="local", task="inpaint"),
        "size": Query(owner="local", size=(768, 512), offset=rng.randrange(40_000)),
        "dates": Query(owner="local", since=last, until=last + timedelta(days=3)),
        "common word": Query("picture", owner="local", offset=rng.randrange(89_000)),
        "word": Query(thing, owner="local", offset=rng.randrange(2000)),
        "rare word": Query("unicorn", owner="local"),
        "colour": Query(colour, owner="local"),
        "two words": Query(f"{thing} {colour}", owner="local"),
        "phrase": Query(f'"a {thing} in the snow"', owner="local"),
        "prefix": Query("col*", owner="local", offset=rng.randrange(2000)),
        "not": Query(f"-{thing}", owner="local", offset=rng.randrange(2000)),
        "word, not": Query(f"{thing} -snow", owner="local"),
        "word, largest": Query("picture", owner="local", sort="largest"),
    }  # fmt: skip


def main() -> None:
    rng = random.Random(2)
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "ai_images.db")
        sizes = UserGallery(ImageRepository(database, ImageStorage(Path(folder))), "local").sizes
        started = time.perf_counter()
        database.save_images(many_images(100_000))
        sys.stdout.write(f"saved in {time.perf_counter() - started:.1f} s\n")
        for _ in range(40):
            for name, query in queries(rng).items():
                seconds.setdefault(f"search {name}", []).append(_timed(database.search, query))
                seconds.setdefault(f"count {name}", []).append(_timed(database.count, query))
            seconds.setdefault("sizes", []).append(_timed(sizes, Query(owner="local")))
        database.close()
    sys.stdout.write("95th percentile in ms: wall clock, CPU\n")
    for name, values in seconds.items():
        clock, processor = (sorted(kind)[int(len(kind) * 0.95)] for kind in zip(*values, strict=True))
        sys.stdout.write(f"{name:24} {clock * 1000:6.1f} {processor * 1000:6.1f}\n")


def _timed(call: Callable[[Query], object], query: Query) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    call(query)
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
