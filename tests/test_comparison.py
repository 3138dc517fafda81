"""Comparisons with the built-in model."""

from __future__ import annotations

import pytest

from canvas import GenerationRequest, Studio
from canvas.comparison import ComparisonService
from canvas.errors import InvalidInput, NotFound, QueueFull
from canvas.jobs.queue import Limits
from canvas.settings import Settings

PAIR = ("quality", "turbo")


def make_request(**fields: object) -> GenerationRequest:
    return GenerationRequest.from_dict({"prompt": "a fox", "num_inference_steps": 2, **fields})


@pytest.mark.slow
def test_a_comparison_has_one_seed_and_one_image_per_entry(studio: Studio) -> None:
    service = ComparisonService(studio)
    comparison = service.start(make_request(), ["starter"], PAIR, blind=False, owner="local")
    for job in studio.jobs("local"):
        job.wait()
    entries = service.entries(comparison)
    assert [entry.request.preset for entry in entries] == list(PAIR)
    assert len({entry.request.seed for entry in entries}) == 1
    images = [entry.image for entry in entries]
    assert [image and image.request for image in images] == list(comparison.requests)
    assert all(image and image.generation_time > 0 for image in images)
    assert {image.id for image in studio.recent()} == {image.id for image in images if image}


def test_vote_raises_until_all_images_are_finished(studio: Studio) -> None:
    service = ComparisonService(studio)
    long = make_request(num_inference_steps=150)
    comparison = service.start(long, ["starter"], PAIR, blind=True, owner="local")
    with pytest.raises(InvalidInput, match="when all of them are finished"):
        service.vote(comparison, 0)
    service.stop(comparison)
    for job in studio.jobs("local"):
        list(job.subscribe())
    with pytest.raises(NotFound):
        studio.comparisons.get(comparison.id, "stranger")


@pytest.mark.slow
def test_comparisons_survive_a_restart(settings: Settings) -> None:
    with Studio(settings) as studio:
        service = ComparisonService(studio)
        comparison = service.start(make_request(seed=3), ["starter"], PAIR, blind=True, owner="local")
        for job in studio.jobs("local"):
            job.wait()
        service.vote(comparison, 1)
    with Studio(settings) as studio:
        service = ComparisonService(studio)
        [again] = studio.comparisons.latest("local", 5)
        assert again.chosen == 1
        assert all(entry.image and entry.job is None for entry in service.entries(again))


@pytest.mark.parametrize(
    ("models", "chosen", "message"),
    [
        (["starter"], ["quality"], r"got 1\)"),
        ([], ["quality"], r"got 0\)"),
        (["starter", "tiny", "small", "portrait", "mini-sd"], [*PAIR, "balanced"], r"got 15\)"),
        (["nonsense"], PAIR, "nonsense"),
        (["starter"], ["quick", "quality"], "Presets must be one of"),
    ],
)
def test_start_rejects_invalid_comparisons(studio: Studio, models: list[str], chosen: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ComparisonService(studio).start(make_request(), models, chosen, blind=False, owner="local")
    assert studio.jobs("local") == []
    assert studio.comparisons.latest("local", 5) == []


def test_a_queue_that_is_full_starts_no_comparison(studio: Studio) -> None:
    studio._limits = Limits(max_queued=1)
    service = ComparisonService(studio)
    with pytest.raises(QueueFull):
        service.start(make_request(), ["starter"], PAIR, blind=False, owner="local")
    assert studio.comparisons.latest("local", 5) == []
    assert studio.jobs("local") == []


@pytest.mark.parametrize(("seed", "kept"), [(0, True), (5, True), (-1, False)])
def test_a_plan_has_two_to_twelve_requests_of_one_image_and_seed(studio: Studio, seed: int, kept: bool) -> None:
    service, request = ComparisonService(studio), make_request(seed=seed, num_images=4)
    for models, presets in ((["starter"], PAIR), (["starter", "tiny", "small", "mini-sd"], [*PAIR, "balanced"])):
        planned = service.plan(request, models, presets)
        assert len(planned) == len(models) * len(presets)
        assert {each.num_images for each in planned} == {1}
        [chosen] = {each.seed for each in planned}
        assert chosen == seed if kept else 0 <= chosen < 2**32


def test_one_prompt_is_compared_at_a_time(studio: Studio) -> None:
    with pytest.raises(InvalidInput, match="this one stands for 3"):
        ComparisonService(studio).plan(make_request(prompt="a {fox|cat|dog}"), ["starter"], PAIR)
