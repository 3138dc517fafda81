"""What a picture needs from the Hub beside its model: extras of its mode, LoRAs, the checker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from canvas.catalog import ModelSpec
from canvas.engine import safety
from canvas.formatting import format_bytes, format_duration
from canvas.jobs.inputs import lora_names
from canvas.jobs.job import Job
from canvas.models import addons, loras
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub
from canvas.request import GenerationRequest
from canvas.settings import Settings

log = logging.getLogger(__name__)


class ModelDependencies:
    """Looks for them on this disk, and fetches what is missing."""

    def __init__(self, settings: Settings, hub: Hub | None) -> None:
        self._checks_pictures = settings.safety_level == "full"
        self._hub = hub

    def all_present(
        self, request: GenerationRequest, spec: ModelSpec, checker: bool = True
    ) -> bool:
        """Whether nothing has to be fetched; asks no network."""
        return (
            not (request.needs_model and addons.missing(request.preset, spec, hub=self._hub))
            and not self._missing_loras(request)
            and not (checker and self._needs_safety_checker())
        )

    def download_size(self, preset: str, spec: ModelSpec) -> int:
        """About how much the first picture of that mode fetches beside the model."""
        missing = addons.missing(preset, spec, hub=self._hub)
        return sum(addons.ADDONS[name].size for name in missing)

    def fetch(
        self,
        request: GenerationRequest,
        spec: ModelSpec,
        on_progress: Callable[[DownloadProgress], None],
        cancelled: threading.Event,
    ) -> None:
        """Download what is missing; raises a kind of ModelUnavailable, or InvalidInput."""
        if request.needs_model:
            addons.fetch(request.preset, spec, on_progress, cancelled, hub=self._hub)
        for name in self._missing_loras(request):
            loras.fetch(name, on_progress, cancelled, hub=self._hub)
        if self._needs_safety_checker():
            safety.fetch_checker(on_progress, cancelled, hub=self._hub)

    def _needs_safety_checker(self) -> bool:
        return self._checks_pictures and safety.find_checker(hub=self._hub) is None

    def _missing_loras(self, request: GenerationRequest) -> list[str]:
        return [
            name
            for name in lora_names(request)
            if loras.is_hub_name(name) and loras.find(name, hub=self._hub) is None
        ]


class DownloadProgressLogger:
    """Tells a download's progress to the job's watchers and, now and then, to the terminal."""

    EVERY = 5.0  # seconds

    def __init__(self, job: Job) -> None:
        self._job = job
        self._told = time.monotonic()

    def __call__(self, progress: DownloadProgress) -> None:
        """So far is it now."""
        self._job.update(progress=progress)
        if time.monotonic() - self._told < self.EVERY:
            return
        self._told = time.monotonic()
        log.info(
            "%s: %s of %s, %s a second, %s left",
            progress.label or self._job.model_key,
            format_bytes(progress.bytes_done),
            format_bytes(progress.bytes_total),
            format_bytes(int(progress.bytes_per_second)),
            "unknown time"
            if progress.seconds_left is None
            else format_duration(progress.seconds_left),
        )
