from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from canvas import MODELS, GenerationRequest, Studio
from canvas.errors import ContentBlocked, InvalidInput, QueueFull
from canvas.jobs.queue import PRIVATE, PUBLIC, Limits, Visitor
from canvas.settings import Settings

FOX = GenerationRequest("a fox").with_defaults(MODELS["starter"])


def test_private_servers_have_no_limit() -> None:
    PRIVATE.check(replace(FOX, num_images=16, num_inference_steps=150))
    PRIVATE.check_queue("ann", ["ann"] * 1000)
    PRIVATE.check_queue(Visitor("visitor-1", "203.0.113.7/32"), [])
    PRIVATE.check_download("small")


def test_check_queue_counts_the_jobs_of_an_owner() -> None:
    limits = Limits(max_queued=2)
    limits.check_queue("ann", ["ann", "bob", "bob"])
    with pytest.raises(QueueFull, match=r"You have 2 .*allows 2.*remove one"):
        limits.check_queue("ann", ["ann", "ann"])
    with pytest.raises(QueueFull):
        limits.check_queue("ann", ["ann"], num_new=2)
    with pytest.raises(QueueFull, match="You have 3 "):
        limits.check_queue("ann", ["ann"] * 3)
    limits.check_queue("ann", [], num_new=2)


def test_check_queue_counts_the_jobs_of_a_network() -> None:
    limits = Limits(max_queued=2, max_queued_per_network=3)
    visitors = [Visitor(f"visitor-{number}", "203.0.113.7/32") for number in range(4)]
    limits.check_queue(visitors[2], visitors[:2])
    with pytest.raises(QueueFull, match=r"from your network have 3 jobs"):
        limits.check_queue(visitors[3], visitors[:3])
    limits.check_queue(Visitor("visitor-5", "198.51.100.1/32"), visitors)
    limits.check_queue("key-ann", visitors)
    with pytest.raises(QueueFull):
        limits.check_queue(visitors[3], visitors[:2], num_new=2)


def test_check_names_the_steps_that_are_allowed() -> None:
    limits = Limits(max_pixel_steps=256 * 256 * 10)
    limits.check(replace(FOX, num_inference_steps=10))
    with pytest.raises(InvalidInput, match=r"Steps must be at most 10 .*got 11"):
        limits.check(replace(FOX, num_inference_steps=11))
    with pytest.raises(InvalidInput, match=r"Steps must be at most 5 .*2 × 256 × 256"):
        limits.check(replace(FOX, num_images=2, num_inference_steps=6))
    with pytest.raises(InvalidInput, match="a smaller image"):
        limits.check(replace(FOX, num_images=16))


def test_a_request_without_steps_counts_as_one_step() -> None:
    request = replace(FOX, num_inference_steps=None)
    Limits(max_pixel_steps=256 * 256).check(request)
    with pytest.raises(InvalidInput, match="a smaller image"):
        Limits(max_pixel_steps=256 * 256 - 1).check(request)
    Limits(max_pixel_steps=0).check(replace(request, width=None))
    Limits(max_pixel_steps=0).check(replace(request, height=None))


def test_every_model_is_within_the_public_limits() -> None:
    for spec in MODELS.values():
        num_images = 4 if spec.resolution <= 512 else 2
        PUBLIC.check(GenerationRequest("a fox", num_images=num_images).with_defaults(spec))


def test_visitors_may_have_four_usual_images_at_a_time_and_a_network_the_jobs_of_two() -> None:
    usual = GenerationRequest("a fox", width=512, height=512, num_inference_steps=50, num_images=4)
    PUBLIC.check(usual)
    with pytest.raises(InvalidInput, match="Steps must be at most 50"):
        PUBLIC.check(replace(usual, num_inference_steps=51))
    assert PUBLIC.max_queued is not None
    assert PUBLIC.max_queued_per_network == 2 * PUBLIC.max_queued


def test_public_limits_apply_per_owner(settings: Settings) -> None:
    slow = GenerationRequest("a fox", num_inference_steps=150)
    with Studio(settings.model_copy(update={"public": True})) as studio:
        for _ in range(PUBLIC.max_queued or 0):
            studio.submit(slow, owner="ann")
        with pytest.raises(QueueFull):
            studio.submit(slow, owner="ann")
        studio.submit(slow, owner="bob")


def test_concurrent_requests_cannot_exceed_the_limit_of_a_network(settings: Settings) -> None:
    slow = GenerationRequest("a fox", num_inference_steps=150)
    visitors = [Visitor(f"visitor-{number}", "203.0.113.7/32") for number in range(40)]

    def submit(visitor: Visitor) -> bool:
        try:
            studio.submit(slow, visitor)
        except QueueFull:
            return False
        return True

    with Studio(settings.model_copy(update={"public": True})) as studio, ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(submit, visitors)) == PUBLIC.max_queued_per_network
        assert len(studio.jobs(None)) == PUBLIC.max_queued_per_network
        studio.submit(slow, Visitor("visitor-x", "198.51.100.1/32"))


def test_visitors_cannot_download_models(settings: Settings) -> None:
    with Studio(settings.model_copy(update={"public": True})) as studio:
        assert studio.available_models == ["starter"]
        with pytest.raises(ContentBlocked, match="canvas download small"):
            studio.download_model("small", "visitor-ann")
        with pytest.raises(ContentBlocked, match="Choose another model"):
            studio.submit(GenerationRequest("a fox", model_key="small"), "visitor-ann")
        assert studio.jobs(None) == []


def test_all_models_are_available_on_private_servers(studio: Studio) -> None:
    assert studio.available_models == list(studio.models)
