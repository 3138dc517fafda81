"""Compares models: one prompt and seed over several of them or their modes, as ordinary jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product

from canvas import validation
from canvas.catalog import get_model
from canvas.errors import InvalidInput
from canvas.history.comparisons import Comparison
from canvas.jobs.job import Job
from canvas.presets import PRESETS
from canvas.request import RANDOM_SEED, GeneratedImage, GenerationRequest
from canvas.studio import Studio

MAX_ENTRIES = 12  # pictures of a comparison


@dataclass(frozen=True)
class ComparisonEntry:
    """One picture of a comparison: its request, the job that makes it, or what came of that."""

    request: GenerationRequest
    job: Job | None
    image: GeneratedImage | None

    @property
    def active(self) -> bool:
        """Whether it is still to come."""
        return self.job is not None and not self.job.finished


class ComparisonService:
    """Begins comparisons, finds their pictures, counts votes."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._kept = studio.comparisons

    def plan(
        self, asked: GenerationRequest, models: Sequence[str], presets: Sequence[str]
    ) -> list[GenerationRequest]:
        """A request for each model in each mode, all with one seed, each in its model's size.

        Raises InvalidInput where there is nothing to compare, or too much.
        """
        for preset in presets:
            validation.choice("modes", preset, PRESETS)
        keys = [get_model(key, self._studio.models).key for key in models]
        if not 2 <= len(keys) * len(presets) <= MAX_ENTRIES:
            raise InvalidInput(
                "models × modes", f"{len(keys)} × {len(presets)}", f"2 to {MAX_ENTRIES} pictures"
            )
        seed = random.randrange(2**32) if asked.seed == RANDOM_SEED else asked.seed
        return [
            replace(asked, model_key=key, preset=preset, seed=seed, num_images=1)
            for key, preset in product(keys, presets)
        ]

    def start(
        self,
        asked: GenerationRequest,
        models: Sequence[str],
        presets: Sequence[str],
        *,
        blind: bool,
        owner: str,
    ) -> Comparison:
        """Queue all pictures or none; raises what `plan` and `Studio.submit` raise."""
        began = datetime.now(UTC)
        jobs = self._studio.submit_many(self.plan(asked, models, presets), owner, "page")
        requests = [job.request for job in jobs if job.request]
        if blind:
            random.shuffle(requests)
        return self._kept.add(owner, requests, blind=blind, created_at=began)

    def entries(self, comparison: Comparison) -> list[ComparisonEntry]:
        """The pictures in the order shown, as far as they are."""
        jobs = {job.request: job for job in self._studio.jobs(comparison.owner)}
        found = []
        for place, request in enumerate(comparison.requests):
            job = jobs.get(request)
            waiting = job is not None and not job.finished
            image = None if waiting else self._kept.find_image(comparison, place)
            found.append(ComparisonEntry(request, job, image))
        return found

    def latest(self, owner: str, limit: int) -> list[Comparison]:
        """The owner's comparisons, the newest first."""
        return self._kept.latest(owner, limit)

    def get(self, comparison_id: str, owner: str) -> Comparison:
        """One comparison of this owner; raises NotFound for any other."""
        return self._kept.get(comparison_id, owner)

    def vote(self, comparison: Comparison, place: int) -> None:
        """Choose a picture, once all are done; raises InvalidInput before, or for a gap."""
        contenders = self.entries(comparison)
        places = [number for number, one in enumerate(contenders) if one.image]
        if any(one.active for one in contenders) or place not in places:
            raise InvalidInput("vote", place, "a finished picture, once all of them are done")
        self._kept.vote(comparison, place)

    def stop(self, comparison: Comparison) -> None:
        """Stop what is still to come."""
        for contender in self.entries(comparison):
            if contender.job:
                contender.job.cancel()
