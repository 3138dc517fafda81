from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from canvas.benchmark.similarity import ssim
from canvas.catalog import MODELS, ModelSpec, parse_model
from canvas.engine import pipeline_cache
from canvas.engine.device import Device
from canvas.engine.img2img import result_size
from canvas.engine.multidiffusion import tile_spans
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.upscale import (
    SUPER_RESOLUTION_MODELS,
    EtaEstimator,
    LoadedPipeline,
    TileProgress,
    is_ncnn_available,
    run_upscale,
    upscale_image,
)
from canvas.errors import GenerationCancelled, InvalidInput, OutOfMemory
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate
from tests.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
needs_ncnn = pytest.mark.skipif(not is_ncnn_available(), reason="the optional packages are not installed")


@pytest.fixture(scope="module", params=["starter", "tiny", "xl"])
def model(
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


def upscale(
    image: Image.Image,
    model: LoadedPipeline | None = None,
    on_step: Any = lambda step: None,
    cancelled: threading.Event | None = None,
    **fields: Any,
) -> GeneratedImage:
    spec = model.spec if model else STARTER
    fields = {"seed": 7, "num_inference_steps": 10, "model_key": spec.key, **fields}
    request = GenerationRequest("a fox in the snow", task="upscale", image="a.png", **fields)
    width, height = result_size(request, image.size)
    request = GenerationRequest.from_dict({**request.to_dict(), "width": width, "height": height})
    return run_upscale(
        request.with_defaults(spec), image, on_step=on_step, cancelled=cancelled or threading.Event(), model=model
    )


def test_lanczos_needs_no_model() -> None:
    result = upscale(make_waves((101, 67)), scale=4)
    assert result.image is not None
    assert result.image.size == (result.request.width, result.request.height) == (404, 268)
    assert (result.task, result.request.num_images, result.model_revision) == ("upscale", 1, "")


def make_spots(side: int) -> Image.Image:
    """Large soft spots of colour: any edges in the result come from the model."""
    spots = np.random.default_rng(5).integers(40, 216, (5, 5, 3), np.uint8)
    return Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC)


def seam_excess(image: Image.Image, side: int) -> tuple[float, float]:
    """How much larger differences are at tile borders than inside, and the standard error.

    The difference of a column is compared with its neighbours', so that edges in the image do
    not count, and only with columns at the start of a latent, like tile borders.
    """
    at_borders, inside = [], []
    for axes in ((0, 1, 2), (1, 0, 2)):
        pixels = np.asarray(image, float).transpose(axes)
        steps = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
        jumps = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
        edges = {edge for span in tile_spans(pixels.shape[1], side, side // 4) for edge in span}
        for column in range(8, pixels.shape[1], 8):
            (at_borders if column in edges else inside).append(jumps[column - 2])
    excess = np.mean(at_borders) - np.mean(inside)
    return float(excess), float(np.std(inside) / np.sqrt(len(at_borders)))


@pytest.mark.slow
def test_detail_redraws_the_image_without_seams(model: LoadedPipeline) -> None:
    side = model.spec.resolution
    updates: list[ProgressUpdate] = []
    result = upscale(make_spots(side), model, updates.append, upscaler="detail", strength=0.4)
    assert result.image is not None
    assert result.image.size == (side * 2, side * 2)
    assert [step.step for step in updates] == list(range(1, 9 * 4 + 1))
    assert {step.num_steps for step in updates} == {9 * 4}
    lanczos = make_spots(side).resize(result.image.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(result.image, float) - np.asarray(lanczos, float)).mean() > 1
    excess, noise = seam_excess(result.image, side)
    assert excess <= max(3 * noise, 0.5), "half a grey level is invisible"

    if model.spec is STARTER:  # a half with another seed and strength has a seam
        other = upscale(make_spots(side), model, upscaler="detail", strength=0.6, seed=8)
        assert other.image is not None
        result.image.paste(other.image.crop((side, 0, side * 2, side * 2)), (side, 0))
        excess, noise = seam_excess(result.image, side)
        assert excess > max(3 * noise, 0.5)


@pytest.mark.long
def test_presets_keep_the_detail_without_seams(model: LoadedPipeline) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    side = model.spec.resolution
    guidance = 1.0 if model.spec is STARTER else 5.0  # trained without guidance
    fields = {"upscaler": "detail", "strength": 0.6, "guidance_scale": guidance}
    handle = model.pipeline.unet.mid_block.register_forward_hook(count)
    try:
        quality = upscale(make_spots(side), model, **fields).image
        assert calls == 9 * 6
        balanced = upscale(make_spots(side), model, preset="balanced", **fields).image
        assert calls == 9 * (6 + 4), "two of six steps are cached per tile"
    finally:
        handle.remove()
    assert quality is not None
    assert balanced is not None
    assert ssim(quality, balanced) > 0.95
    excess, noise = seam_excess(balanced, side)
    assert excess <= max(3 * noise, 0.5)


@pytest.mark.slow
def test_detail_is_reproducible(model: LoadedPipeline) -> None:
    results = [upscale(make_waves((48, 40)), model, upscaler="detail", strength=0.2).image for _ in range(2)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.slow
def test_cancel_within_one_tile(model: LoadedPipeline) -> None:
    cancelled = threading.Event()
    side = model.spec.resolution
    with pytest.raises(GenerationCancelled):
        upscale(
            make_waves((side, side)), model, lambda step: cancelled.set(), cancelled,
            upscaler="detail",
        )  # fmt: skip


@needs_ncnn
def test_super_resolution_reports_tiles() -> None:
    updates: list[ProgressUpdate] = []
    result = upscale(make_waves((200, 40)), None, updates.append, upscaler="illustration")
    assert result.image is not None
    assert result.image.size == (400, 80)
    assert [(step.step, step.num_steps) for step in updates] == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.slow
def test_detail_needs_memory_for_one_tile_only(monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalModel(Path(STARTER.name), "", "")
    pipeline = PipelineCache(CPU).get(STARTER, local, "image_to_image")
    model = LoadedPipeline(pipeline, STARTER, CPU, "abc")
    tile = STARTER.resolution**2 * pipeline_cache.BYTES_PER_PIXEL * 4
    monkeypatch.setattr(pipeline_cache, "free_device_memory", lambda device: tile + 1)
    result = upscale(make_waves((320, 320)), model, upscaler="detail", num_inference_steps=2)
    assert result.image is not None
    assert result.image.size == (640, 640)
    with pytest.raises(OutOfMemory, match=r"384x384 needs .* would fit"):
        pipeline_cache.check_memory((384, 384), STARTER, CPU)


def test_tiles_are_reported_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 106.0, 106.0])
    monkeypatch.setattr("canvas.engine.upscale.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    updates: list[ProgressUpdate] = []
    cancelled = threading.Event()
    progress = TileProgress(SimpleNamespace(num_timesteps=2), 3, updates.append, cancelled)
    progress.on_tile(1)
    progress.on_tile(2)
    progress.on_tile(3)  # reported with its step
    progress.on_step(ProgressUpdate(1, 2))
    progress.on_step(ProgressUpdate(1, 2))
    found = [(each.step, each.num_steps, each.seconds_left) for each in updates]
    assert found == [(1, 6, None), (2, 6, 16.0), (3, 6, 9.0), (3, 6, 9.0)]
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        progress.on_tile(4)


def test_nothing_is_estimated_from_the_first_tile_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("canvas.engine.upscale.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    progress = EtaEstimator()
    assert [progress.update(1, 6).seconds_left for _ in range(2)] == [None, None]


def make_waves(size: tuple[int, int]) -> Image.Image:
    """Smooth shapes and edges that are not aligned with the tiles."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    planes = [np.sin(x / a + y / b) > c for a, b, c in ((9, 31, 0), (23, 11, 0.4), (17, 7, -0.3))]
    soft = [127 + 60 * plane + 50 * np.sin(x / 13) for plane in planes]
    return Image.fromarray(np.stack(soft, -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("scale", [2, 4])
def test_lanczos_keeps_the_image(scale: int) -> None:
    upscaled = upscale_image(make_waves((50, 30)), scale, "lanczos")
    assert upscaled.size == (50 * scale, 30 * scale)
    downscaled = np.asarray(upscaled.resize((50, 30), Image.Resampling.BOX), float)
    assert np.abs(downscaled - np.asarray(make_waves((50, 30)), float)).mean() < 4


def test_too_large_result_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        upscale_image(Image.new("RGB", (4000, 4000)), 4, "lanczos")


@needs_ncnn
@pytest.mark.parametrize("scale", [2, 4])
def test_model_keeps_the_image_and_sharpens_edges(scale: int) -> None:
    small = make_waves((64, 48))
    upscaled = upscale_image(small, scale, "illustration")
    assert upscaled.size == (64 * scale, 48 * scale)
    downscaled = np.asarray(upscaled.resize(small.size, Image.Resampling.BOX), float)
    assert np.abs(downscaled - np.asarray(small, float)).mean() < 8
    lanczos = upscale_image(small, scale, "lanczos")
    gradients = [np.abs(np.diff(np.asarray(p, float), axis=1)).max() for p in (upscaled, lanczos)]
    assert gradients[0] > gradients[1]


@needs_ncnn
def test_tiles_equal_a_single_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_waves((100, 70))
    progress: list[tuple[int, int]] = []
    single_pass = np.asarray(upscale_image(image, 2, "illustration"), int)
    model = replace(SUPER_RESOLUTION_MODELS["illustration"], tile=48)
    monkeypatch.setattr("canvas.engine.upscale.SUPER_RESOLUTION_MODELS", {"illustration": model})
    tiled = upscale_image(image, 2, "illustration", lambda done, total: progress.append((done, total)))
    assert np.abs(np.asarray(tiled, int) - single_pass).max() <= 1
    assert progress == [(done, 6) for done in range(7)]


@needs_ncnn
def test_cancel_super_resolution_within_one_tile() -> None:
    cancelled = threading.Event()
    with pytest.raises(GenerationCancelled):
        upscale_image(make_waves((400, 32)), 2, "illustration", lambda *_: cancelled.set(), cancelled)
