from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from canvas.catalog import MODELS, ModelSpec, parse_model
from canvas.engine import enlarging, upscaling
from canvas.engine.device import Device
from canvas.engine.downloads import LocalModel
from canvas.engine.editing import final_size
from canvas.engine.enlarging import Redrawing, run_enlarging
from canvas.engine.pipelines import PipelineCache
from canvas.engine.upscaling import enlarge_with_detail, spans
from canvas.errors import GenerationCancelled
from canvas.request import GeneratedImage, GenerationRequest, Step
from tests.engine.test_upscaling import steps_at, waves
from tests.engine.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]


@pytest.fixture(scope="module", params=["starter", "tiny", "xl"])
def redrawing(
    request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> Redrawing:
    spec = {"starter": STARTER, "tiny": tiny_spec}.get(request.param)
    if spec is None:
        entry = {
            "name": str(make_tiny_xl(tmp_path_factory.mktemp("xl"))),
            **{"size": "1 MB", "speed": "Fast", "quality": "None", "resolution": 64},
            "type": "stable_diffusion_xl",
            "scheduler": "Euler",
        }
        spec = parse_model("xl-test", entry)
    local = LocalModel(Path(spec.name), "", "")
    return Redrawing(PipelineCache(CPU).get(spec, local, "image_to_image"), spec, CPU, "abc")


def enlarge(
    picture: Image.Image,
    redrawing: Redrawing | None = None,
    on_step: Any = lambda step: None,
    cancelled: threading.Event | None = None,
    **fields: Any,
) -> GeneratedImage:
    spec = redrawing.spec if redrawing else STARTER
    given = {"seed": 7, "num_inference_steps": 10, "model_key": spec.key, **fields}
    wish = GenerationRequest("a fox in the snow", task="upscale", image="a.png", **given)
    width, height = final_size(wish, picture.size, spec)
    wish = GenerationRequest.from_dict({**wish.to_dict(), "width": width, "height": height})
    return run_enlarging(
        wish.resolve(spec),
        picture,
        on_step=on_step,
        cancelled=cancelled or threading.Event(),
        redrawing=redrawing,
    )


def test_plain_enlarging_needs_no_model_and_keeps_the_record() -> None:
    made = enlarge(waves((101, 67)), scale=4)
    assert made.image is not None
    assert made.image.size == (made.request.width, made.request.height) == (400, 264)
    assert (made.task, made.request.num_images, made.model_revision) == ("upscale", 1, "")


def test_detail_redraws_the_tiles_without_a_seam(
    redrawing: Redrawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = redrawing.spec.resolution
    picture = waves((side, side))
    seen: list[Step] = []
    tiles: list[Image.Image] = []

    def recording(small: Image.Image, scale: int, side: int, redraw: Any) -> Image.Image:
        def remember(*tile: Any) -> Image.Image:
            tiles.append(redraw(*tile))
            return tiles[-1]

        return enlarge_with_detail(small, scale, side, remember)

    monkeypatch.setattr(enlarging, "enlarge_with_detail", recording)
    made = enlarge(picture, redrawing, seen.append, upscaler="detail", strength=0.4)
    assert made.image is not None
    assert made.image.size == (side * 2, side * 2)
    assert [step.step for step in seen] == list(range(1, 9 * 4 + 1))
    assert {step.num_steps for step in seen} == {9 * 4}

    drawn = np.asarray(made.image, float)
    plain = picture.resize(made.image.size, Image.Resampling.LANCZOS)
    assert np.abs(drawn - np.asarray(plain, float)).mean() > 1
    # Each border of a tile lies in the middle of another: the step there is no larger than
    # that of the tile which goes on. Pictures have edges everywhere, so only the same place counts.
    [_, (middle, _), _] = starts = spans(side * 2, side, side // 4)
    assert [start for start, _ in starts] == [0, middle, side]
    for turned in (False, True):
        turn = (1, 0, 2) if turned else (0, 1, 2)
        grid = [np.asarray(tile, float).transpose(turn) for tile in tiles]
        inside = [steps_at(tile, [middle])[0] for tile in grid]
        at_borders, _ = steps_at(drawn.transpose(turn), [middle, side, side + middle])
        assert at_borders <= np.mean(inside) * 1.25


def test_detail_made_again_is_the_same(redrawing: Redrawing) -> None:
    found = [
        enlarge(waves((48, 40)), redrawing, upscaler="detail", strength=0.2).image for _ in range(2)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tobytes() == found[1].tobytes()


def test_it_stops_within_a_tile(redrawing: Redrawing) -> None:
    cancelled = threading.Event()
    side = redrawing.spec.resolution
    with pytest.raises(GenerationCancelled):
        enlarge(
            waves((side, side)), redrawing, lambda step: cancelled.set(), cancelled,
            upscaler="detail",
        )  # fmt: skip


@pytest.mark.skipif(not upscaling.has_networks(), reason="the packages are optional")
def test_network_reports_its_tiles() -> None:
    seen: list[Step] = []
    made = enlarge(waves((200, 40)), None, seen.append, upscaler="illustration")
    assert made.image is not None
    assert made.image.size == (400, 80)
    assert [(step.step, step.num_steps) for step in seen] == [(0, 2), (1, 2), (2, 2)]
