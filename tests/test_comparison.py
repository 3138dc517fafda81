"""Comparing models with the real built-in one."""

from __future__ import annotations

import pytest

from canvas import GenerationRequest, Studio
from canvas.comparison import ComparisonService
from canvas.errors import InvalidInput, NotFound
from canvas.settings import Settings

MODES = ("quality", "turbo")


def asked(**settings: object) -> GenerationRequest:
    return GenerationRequest.from_dict({"prompt": "a fox", "num_inference_steps": 2, **settings})


def test_one_seed_for_all_and_a_picture_each(studio: Studio) -> None:
    comparing = ComparisonService(studio)
    made = comparing.start(asked(), ["starter"], MODES, blind=False, owner="local")
    for job in studio.jobs("local"):
        job.wait()
    contenders = comparing.entries(made)
    assert [one.request.preset for one in contenders] == list(MODES)
    assert len({one.request.seed for one in contenders}) == 1
    pictures = [one.image for one in contenders]
    assert [image and image.request for image in pictures] == list(made.requests)
    assert all(image and image.generation_time > 0 for image in pictures)
    assert {image.id for image in studio.recent()} == {image.id for image in pictures if image}


def test_a_vote_waits_for_all_pictures(studio: Studio) -> None:
    comparing = ComparisonService(studio)
    long = asked(num_inference_steps=150)
    made = comparing.start(long, ["starter"], MODES, blind=True, owner="local")
    with pytest.raises(InvalidInput, match="once all of them are done"):
        comparing.vote(made, 0)
    comparing.stop(made)
    for job in studio.jobs("local"):
        job.subscribe()
    with pytest.raises(NotFound):
        comparing.get(made.id, "stranger")


def test_what_is_found_again_after_a_restart(settings: Settings) -> None:
    with Studio(settings) as studio:
        comparing = ComparisonService(studio)
        made = comparing.start(asked(seed=3), ["starter"], MODES, blind=True, owner="local")
        for job in studio.jobs("local"):
            job.wait()
        comparing.vote(made, 1)
    with Studio(settings) as studio:
        comparing = ComparisonService(studio)
        [again] = comparing.latest("local", 5)
        assert again.chosen == 1
        assert all(one.image and one.job is None for one in comparing.entries(again))


@pytest.mark.parametrize(
    ("models", "modes", "said"),
    [
        (["starter"], ["quality"], "1 × 1"),
        ([], ["quality"], "0 × 1"),
        (["starter", "tiny", "small", "portrait", "mini-sd"], [*MODES, "balanced"], "5 × 3"),
        (["nonsense"], MODES, "nonsense"),
        (["starter"], ["quick", "quality"], "modes: 'quick'"),
    ],
)
def test_what_cannot_be_compared_is_said(
    studio: Studio, models: list[str], presets: list[str], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        ComparisonService(studio).start(asked(), models, presets, blind=False, owner="local")
    assert studio.jobs("local") == []
