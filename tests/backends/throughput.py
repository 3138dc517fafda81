"""`python -m tests.backends.throughput FOLDER WORKERS [cluster]`: images per second, one core per worker.

With `cluster` each worker is an actor on a node of its own of a Ray cluster, whose processes use the
same cores.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from canvas import GenerationRequest, Studio
from canvas.settings import Settings
from tests.backends.cluster import running_cluster

NUM_IMAGES = 60


def main(folder: Path, workers: int, kind: str = "processes") -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    with ExitStack() as stack:
        options: dict[str, Any] = {"workers": workers}
        if kind == "cluster":
            cluster = stack.enter_context(running_cluster(folder, workers))
            options = {"cluster": cluster.address, "cores_per_worker": 1}
        settings = Settings(
            data_dir=folder, cache_dir=folder / "cache", device="cpu", dtype="float32", engine="torch", **options
        )
        studio = stack.enter_context(Studio(settings))
        studio.warm_up()
        spec = studio.models["starter"]
        while len(studio.backends) < workers or not all(backend.is_loaded(spec) for backend in studio.backends):
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
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
