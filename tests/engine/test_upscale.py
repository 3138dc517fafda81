from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from canvas.benchmark.similarity import ssim
from canvas.catalog import MODELS, ModelSpec, parse_model
from canvas.engine import pipeline_cache, super_resolution
from canvas.engine.device import Device
from canvas.engine.img2img import output_size
from canvas.engine.multidiffusion import tile_spans
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.upscale import LoadedPipeline, run_upscale
from canvas.errors import GenerationCancelled, OutOfMemory
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate
from tests.engine.test_super_resolution import waves
from tests.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]


@pytest.fixture(scope="module", params=["starter", "tiny", "xl"])
def redrawing(
    request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> LoadedPipeline:
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
    return LoadedPipeline(PipelineCache(CPU).get(spec, local, "image_to_image"), spec, CPU, "abc")


def enlarge(
    picture: Image.Image,
    redrawing: LoadedPipeline | None = None,
    on_step: Any = lambda step: None,
    cancelled: threading.Event | None = None,
    **fields: Any,
) -> GeneratedImage:
    spec = redrawing.spec if redrawing else STARTER
    given = {"seed": 7, "num_inference_steps": 10, "model_key": spec.key, **fields}
    wish = GenerationRequest("a fox in the snow", task="upscale", image="a.png", **given)
    width, height = output_size(wish, picture.size, spec)
    wish = GenerationRequest.from_dict({**wish.to_dict(), "width": width, "height": height})
    return run_upscale(
        wish.with_defaults(spec),
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


def soft(side: int) -> Image.Image:
    """Large soft spots of colour: what edges there are in the end, the model has drawn."""
    spots = np.random.default_rng(5).integers(40, 216, (5, 5, 3), np.uint8)
    return Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC)


def seams(picture: Image.Image, side: int) -> tuple[float, float]:
    """How much larger the step at a window's border is than inside, and the noise of that figure.

    A column's step is taken against those of its two neighbours, so that edges in the picture do
    not count, and against columns that begin a latent, as borders do.
    """
    at_borders, inside = [], []
    for turn in ((0, 1, 2), (1, 0, 2)):
        pixels = np.asarray(picture, float).transpose(turn)
        steps = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
        jumps = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
        edges = {edge for span in tile_spans(pixels.shape[1], side, side // 4) for edge in span}
        for column in range(8, pixels.shape[1], 8):
            (at_borders if column in edges else inside).append(jumps[column - 2])
    excess = np.mean(at_borders) - np.mean(inside)
    return float(excess), float(np.std(inside) / np.sqrt(len(at_borders)))


def test_detail_draws_the_picture_anew_without_a_seam(redrawing: LoadedPipeline) -> None:
    side = redrawing.spec.resolution
    seen: list[ProgressUpdate] = []
    made = enlarge(soft(side), redrawing, seen.append, upscaler="detail", strength=0.4)
    assert made.image is not None
    assert made.image.size == (side * 2, side * 2)
    assert [step.step for step in seen] == list(range(1, 9 * 4 + 1))
    assert {step.num_steps for step in seen} == {9 * 4}
    plain = soft(side).resize(made.image.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(made.image, float) - np.asarray(plain, float)).mean() > 1
    excess, noise = seams(made.image, side)
    assert excess <= max(3 * noise, 0.5), "half a step of eight bits is not to be seen"

    if redrawing.spec is STARTER:  # the measure can fail: a half that was drawn by itself
        other = enlarge(soft(side), redrawing, upscaler="detail", strength=0.4, seed=8)
        assert other.image is not None
        made.image.paste(other.image.crop((side, 0, side * 2, side * 2)), (side, 0))
        excess, noise = seams(made.image, side)
        assert excess > max(3 * noise, 0.5)


def test_shortcuts_of_the_mode_keep_the_detail_and_make_no_seam(redrawing: LoadedPipeline) -> None:
    passes = 0

    def counted(*_: Any) -> None:
        nonlocal passes
        passes += 1

    side = redrawing.spec.resolution
    guidance = 1.0 if redrawing.spec is STARTER else 5.0  # it was made for no more
    fields = {"upscaler": "detail", "strength": 0.6, "guidance_scale": guidance}
    middle = redrawing.pipeline.unet.mid_block.register_forward_hook(counted)
    try:
        whole = enlarge(soft(side), redrawing, **fields).image
        assert passes == 9 * 6
        quick = enlarge(soft(side), redrawing, preset="balanced", **fields).image
        assert passes == 9 * (6 + 4), "of six steps two take the deep features of their window"
    finally:
        middle.remove()
    assert whole is not None
    assert quick is not None
    assert ssim(whole, quick) > 0.95
    excess, noise = seams(quick, side)
    assert excess <= max(3 * noise, 0.5)


def test_detail_made_again_is_the_same(redrawing: LoadedPipeline) -> None:
    found = [
        enlarge(waves((48, 40)), redrawing, upscaler="detail", strength=0.2).image for _ in range(2)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tobytes() == found[1].tobytes()


def test_it_stops_within_a_tile(redrawing: LoadedPipeline) -> None:
    cancelled = threading.Event()
    side = redrawing.spec.resolution
    with pytest.raises(GenerationCancelled):
        enlarge(
            waves((side, side)), redrawing, lambda step: cancelled.set(), cancelled,
            upscaler="detail",
        )  # fmt: skip


@pytest.mark.skipif(not super_resolution.is_ncnn_available(), reason="the packages are optional")
def test_network_reports_its_tiles() -> None:
    seen: list[ProgressUpdate] = []
    made = enlarge(waves((200, 40)), None, seen.append, upscaler="illustration")
    assert made.image is not None
    assert made.image.size == (400, 80)
    assert [(step.step, step.num_steps) for step in seen] == [(0, 2), (1, 2), (2, 2)]


def test_detail_needs_room_for_a_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalModel(Path(STARTER.name), "", "")
    pipeline = PipelineCache(CPU).get(STARTER, local, "image_to_image")
    redrawing = LoadedPipeline(pipeline, STARTER, CPU, "abc")
    window = STARTER.resolution**2 * pipeline_cache.BYTES_PER_PIXEL * 4
    monkeypatch.setattr(pipeline_cache, "free_device_memory", lambda device: window + 1)
    large = enlarge(waves((320, 320)), redrawing, upscaler="detail", num_inference_steps=2)
    assert large.image is not None
    assert large.image.size == (640, 640)
    wish = GenerationRequest("a fox", width=384, height=384).with_defaults(STARTER)
    with pytest.raises(OutOfMemory, match=r"384x384 needs .* would fit"):
        pipeline_cache.check_memory(wish, STARTER, CPU)
