"""`python -m tests.backends.throughput FOLDER WORKERS`: images per second, one core per worker."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from canvas import GenerationRequest, Studio
from canvas.settings import Settings

NUM_IMAGES = 60


def main(folder: Path, workers: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    settings = Settings(
        data_dir=folder, cache_dir=folder / "cache", device="cpu", dtype="float32", engine="torch", workers=workers
    )
    with Studio(settings) as studio:
        studio.warm_up()
        spec = studio.models["starter"]
        while not all(backend.is_loaded(spec) for backend in studio.backends):
            time.sleep(0.05)
        # Warm up every worker: concurrent jobs, or one worker would run them all.
        for job in [studio.submit(GenerationRequest("an owl", seed=seed)) for seed in range(8)]:
            job.wait()
        started = time.perf_counter()
        jobs = [studio.submit(GenerationRequest("a fox", seed=seed)) for seed in range(NUM_IMAGES)]
        for job in jobs:
            job.wait()
        sys.stdout.write(f"{NUM_IMAGES / (time.perf_counter() - started)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
