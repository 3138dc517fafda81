"""Comparisons of models and presets with one prompt and seed, as ordinary jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from canvas import validation
from canvas.catalog import get_model
from canvas.errors import InvalidInput, LazyMessage
from canvas.history.comparisons import Comparison
from canvas.jobs.job import Job
from canvas.presets import PRESETS
from canvas.request import RANDOM_SEED, GeneratedImage, GenerationRequest
from canvas.studio import Studio

MAX_ENTRIES = 12


@dataclass(frozen=True)
class ComparisonEntry:
    """One request of a comparison with its job, if that is known, and its image."""

    request: GenerationRequest
    job: Job | None
    image: GeneratedImage | None

    @property
    def active(self) -> bool:
        return self.job is not None and not self.job.finished


class ComparisonService:
    """Starts comparisons, collects their images and takes votes."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._comparisons = studio.comparisons

    def plan(
        self, request: GenerationRequest, models: Sequence[str], presets: Sequence[str]
    ) -> list[GenerationRequest]:
        """The request for each model with each preset, with one seed and each model's defaults.

        Raises InvalidInput for fewer than two combinations or more than MAX_ENTRIES.
        """
        for preset in presets:
            validation.choice("presets", preset, PRESETS)
        request, *others = self._studio.expand_prompt(request)
        if others:
            text = "Write a single prompt to compare; this one stands for {number}."
            raise InvalidInput("prompt", request.prompt, message=LazyMessage(text, number=len(others) + 1))
        specs = [get_model(key, self._studio.models) for key in models]
        number = len(specs) * len(presets)
        if not 2 <= number <= MAX_ENTRIES:
            message = LazyMessage(
                "Choose models and presets with 2 to {allowed} combinations (got {number}).",
                allowed=MAX_ENTRIES,
                number=number,
            )
            raise InvalidInput("models", number, message=message)
        seed = random.randrange(2**32) if request.seed == RANDOM_SEED else request.seed
        return [
            replace(request, model_key=spec.key, preset=preset, seed=seed, num_images=1).with_defaults(spec)
            for spec, preset in product(specs, presets)
        ]

    def start(
        self, request: GenerationRequest, models: Sequence[str], presets: Sequence[str], *, blind: bool, owner: str
    ) -> Comparison:
        """Queue all requests or none; raises what `plan` and `Studio.submit` raise."""
        requests = self.plan(request, models, presets)
        shown = random.sample(requests, len(requests)) if blind else requests
        comparison = self._comparisons.add(owner, shown, blind=blind)
        try:
            self._studio.submit_many(requests, owner, "page")
        except BaseException:
            self._comparisons.delete(comparison)
            raise
        return comparison

    def entries(self, comparison: Comparison) -> list[ComparisonEntry]:
        """The requests in the order shown, with their jobs and images so far."""
        jobs = {job.request: job for job in self._studio.jobs(comparison.owner)}
        images = self._comparisons.images(comparison)
        entries = [
            ComparisonEntry(request, jobs.get(request), image)
            for request, image in zip(comparison.requests, images, strict=True)
        ]
        return [replace(entry, image=None) if entry.active else entry for entry in entries]

    def vote(self, comparison: Comparison, position: int) -> None:
        """Vote for an image; raises InvalidInput before all jobs are finished."""
        entries = self.entries(comparison)
        positions = [index for index, entry in enumerate(entries) if entry.image]
        if any(entry.active for entry in entries) or position not in positions:
            message = LazyMessage("Vote for one of the images when all of them are finished.")
            raise InvalidInput("vote", position, message=message)
        self._comparisons.vote(comparison, position)

    def stop(self, comparison: Comparison) -> None:
        for entry in self.entries(comparison):
            if entry.job:
                entry.job.cancel()
