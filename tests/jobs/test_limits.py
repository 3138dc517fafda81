from __future__ import annotations

from dataclasses import replace

import pytest

from canvas import MODELS, GenerationRequest, Studio
from canvas.errors import ContentBlocked, InvalidInput, QueueFull
from canvas.jobs.limits import PRIVATE, PUBLIC, Limits
from canvas.settings import Settings

FOX = GenerationRequest("a fox").with_defaults(MODELS["starter"])


def test_alone_at_home_there_is_no_limit() -> None:
    PRIVATE.check(replace(FOX, num_images=16, num_inference_steps=150), waiting=1000)


def test_one_more_than_allowed_is_refused() -> None:
    limits = Limits(max_queued=2)
    limits.check(FOX, waiting=1)
    with pytest.raises(QueueFull, match=r"2 are allowed.*take one out"):
        limits.check(FOX, waiting=2)


def test_too_much_work_names_what_would_do() -> None:
    limits = Limits(max_pixel_steps=256 * 256 * 10)
    limits.check(replace(FOX, num_inference_steps=10), waiting=0)
    with pytest.raises(InvalidInput, match=r"num_inference_steps: 11 .* at most 10"):
        limits.check(replace(FOX, num_inference_steps=11), waiting=0)
    with pytest.raises(InvalidInput, match="a smaller picture"):
        limits.check(replace(FOX, num_images=16), waiting=0)


def test_every_model_of_the_catalogue_is_within_the_public_limits() -> None:
    for spec in MODELS.values():
        PUBLIC.check(GenerationRequest("a fox", num_images=4).with_defaults(spec), waiting=0)


def test_a_public_studio_limits_each_visitor(settings: Settings) -> None:
    slow = GenerationRequest("a fox", num_inference_steps=150)
    with Studio(replace(settings, public=True)) as studio:
        for _ in range(PUBLIC.max_queued or 0):
            studio.submit(slow, owner="ann")
        with pytest.raises(QueueFull):
            studio.submit(slow, owner="ann")
        studio.submit(slow, owner="bob")


def test_visitors_fetch_no_models(settings: Settings) -> None:
    with Studio(replace(settings, public=True)) as studio:
        assert studio.available_models == ["starter"]
        with pytest.raises(ContentBlocked, match="canvas download small"):
            studio.download_model("small", "visitor-ann")
        with pytest.raises(ContentBlocked, match="Pick another model"):
            studio.submit(GenerationRequest("a fox", model_key="small"), "visitor-ann")
        assert studio.jobs(None) == []


def test_at_home_all_models_are_offered(studio: Studio) -> None:
    assert studio.available_models == list(studio.models)
