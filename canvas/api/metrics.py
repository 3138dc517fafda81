"""`/metrics` for Prometheus: what the server has made, has waiting, and has left."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from canvas.jobs import Job, Status

if TYPE_CHECKING:
    from canvas.studio import Studio

UNFINISHED: tuple[Status, ...] = ("queued", "downloading", "loading", "running")


class Metrics(Collector):
    """Numbers read when they are asked for, from the database and the jobs."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def metrics(self, request: Request) -> Response:
        """The text that Prometheus reads."""
        return Response(
            generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask before somebody reads."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families, fresh."""
        pictures = CounterMetricFamily(
            "canvas_pictures", "Pictures kept, by model.", labels=["model"]
        )
        seconds = CounterMetricFamily(
            "canvas_generation_seconds", "Seconds spent on them.", labels=["model"]
        )
        for row in self._studio.store.rows(
            "SELECT coalesce(model_used, '') AS model, count(*) AS pictures, "
            "coalesce(sum(generation_time), 0) AS seconds FROM generated_images GROUP BY model_used"
        ):
            pictures.add_metric([row["model"]], row["pictures"])
            seconds.add_metric([row["model"]], row["seconds"])
        yield pictures
        yield seconds
        jobs = GaugeMetricFamily("canvas_jobs", "Unfinished jobs, by status.", labels=["status"])
        counts = count_jobs(self._studio.jobs(None))
        for status, count in counts.items():
            jobs.add_metric([status], count)
        yield jobs
        free = shutil.disk_usage(self._studio.settings.data_dir).free
        yield GaugeMetricFamily("canvas_disk_free_bytes", "Free where pictures are kept.", free)


def count_jobs(jobs: list[Job]) -> dict[str, int]:
    """How many jobs there are of each status that is not the end."""
    found = Counter(job.status for job in jobs)
    return {status: found[status] for status in UNFINISHED}
