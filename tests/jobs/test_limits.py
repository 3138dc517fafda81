from __future__ import annotations

from dataclasses import replace

import pytest

from canvas import MODELS, GenerationRequest, Studio
from canvas.errors import ContentBlocked, InvalidInput, QueueFull
from canvas.jobs.limits import PRIVATE, PUBLIC, Limits
from canvas.settings import Settings

FOX = GenerationRequest("a fox").with_defaults(MODELS["starter"])


def test_private_servers_have_no_limit() -> None:
    PRIVATE.check(replace(FOX, num_images=16, num_inference_steps=150), num_queued=1000)


def test_check_raises_if_the_queue_is_full() -> None:
    limits = Limits(max_queued=2)
    limits.check(FOX, num_queued=1)
    with pytest.raises(QueueFull, match=r"allows 2.*remove one"):
        limits.check(FOX, num_queued=2)


def test_check_names_the_steps_that_are_allowed() -> None:
    limits = Limits(max_pixel_steps=256 * 256 * 10)
    limits.check(replace(FOX, num_inference_steps=10), num_queued=0)
    with pytest.raises(InvalidInput, match=r"Steps must be at most 10 .*got 11"):
        limits.check(replace(FOX, num_inference_steps=11), num_queued=0)
    with pytest.raises(InvalidInput, match="a smaller image"):
        limits.check(replace(FOX, num_images=16), num_queued=0)


def test_every_model_is_within_the_public_limits() -> None:
    for spec in MODELS.values():
        PUBLIC.check(GenerationRequest("a fox", num_images=4).with_defaults(spec), num_queued=0)


def test_public_limits_apply_per_owner(settings: Settings) -> None:
    slow = GenerationRequest("a fox", num_inference_steps=150)
    with Studio(settings.model_copy(update={"public": True})) as studio:
        for _ in range(PUBLIC.max_queued or 0):
            studio.submit(slow, owner="ann")
        with pytest.raises(QueueFull):
            studio.submit(slow, owner="ann")
        studio.submit(slow, owner="bob")


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
