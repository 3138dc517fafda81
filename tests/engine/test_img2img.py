"""Image to image, inpainting, outpainting and seed variations, with real models."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from canvas.catalog import MODELS, ModelSpec, parse_model
from canvas.engine import step_callback
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.img2img import pipeline_task, prepare_inputs, result_size
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import InvalidInput
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest, ProgressUpdate
from tests.conftest import slow_params
from tests.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
NAMES = {"image": "a.png", "mask_image": "b.png"}


@pytest.fixture(scope="module")
def cache() -> PipelineCache:
    return PipelineCache(CPU)


@pytest.fixture(scope="module", params=["tiny", *slow_params("starter", "xl")])
def spec(request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    if request.param == "xl":
        entry = {
            "name": str(make_tiny_xl(tmp_path_factory.mktemp("xl"))),
            **{"size": "1 MB", "speed": "Fast", "quality": "None", "resolution": 64},
            "type": "stable_diffusion_xl",
            "scheduler": "Euler",
        }
        return parse_model("xl-test", entry)
    return STARTER if request.param == "starter" else tiny_spec


def render(
    cache: PipelineCache,
    spec: ModelSpec,
    images: dict[str, Image.Image] | None = None,
    on_step: Any = lambda step: None,
    **fields: Any,
) -> list[Image.Image]:
    fields = {"num_inference_steps": 6, "seed": 7, "model_key": spec.key, **fields}
    images = images or {}
    request = GenerationRequest("a fox in the snow", **{n: NAMES[n] for n in images}, **fields)
    if "image" in images and request.width is None:
        width, height = result_size(request, images["image"].size)
        fields |= {"width": width, "height": height}
        request = GenerationRequest("a fox in the snow", **{n: NAMES[n] for n in images}, **fields)
    local = LocalModel(Path(spec.name), "", "")
    pipeline = cache.get(spec, local, pipeline_task(cache.get(spec, local), request))
    results = generate(
        pipeline,
        request.with_defaults(spec),
        spec=spec,
        device=CPU,
        on_step=on_step,
        cancelled=threading.Event(),
        images=images,
    )
    rendered = []
    for image in results:
        assert image.image is not None
        assert image.task == request.task
        assert image.image.size == image.request.size
        rendered.append(image.image)
    return rendered


def make_scene(size: tuple[int, int] = (256, 256)) -> Image.Image:
    image = Image.new("RGB", size, "#5588cc")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, size[1] * 2 // 3, *size), fill="#f0f0f0")
    draw.ellipse((size[0] // 3, size[1] // 3, size[0] * 2 // 3, size[1] * 4 // 5), fill="#cc5511")
    return image


def make_mask(size: tuple[int, int] = (256, 256)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, 20, size[0] // 2, size[1] // 2), fill=255)
    return mask


def ssim(first: Image.Image, second: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004) in windows of 8 x 8, in greyscale."""
    windows = []
    for image in (first, second):
        grey = np.asarray(image.convert("L"), float)
        rows, columns = grey.shape[0] // 8, grey.shape[1] // 8
        cut = grey[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8)
        windows.append(cut.transpose(0, 2, 1, 3).reshape(-1, 64))
    a, b = windows
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(1)
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (a.var(1) + b.var(1) + c2)
    return float((top / below).mean())


@pytest.mark.slow
def test_strength_controls_the_similarity_to_the_input(cache: PipelineCache, spec: ModelSpec) -> None:
    # The VAE limits how similar the result can be, and an image from the prompt alone is similar
    # by chance. The scene is inverted, because otherwise it looks like the prompt.
    size = (spec.resolution, spec.resolution)
    options: dict[str, Any] = {"task": "image_to_image", "num_inference_steps": 20}
    images = {"image": ImageChops.invert(make_scene(size))}
    [reconstructed] = render(cache, spec, images, strength=0.01, guidance_scale=1, **options)
    [by_chance] = render(cache, spec, num_inference_steps=20)
    low, high = (
        ssim(render(cache, spec, images, strength=strength, **options)[0], reconstructed) for strength in (0.1, 0.9)
    )
    assert low > high + 0.1
    assert high < ssim(by_chance, reconstructed) + 0.1
    if spec is STARTER:  # the other models have random weights
        assert low > 0.8
        assert high < 0.7


def test_progress_counts_denoising_steps(cache: PipelineCache, spec: ModelSpec) -> None:
    updates: list[ProgressUpdate] = []
    render(
        cache, spec, {"image": make_scene()}, updates.append, task="image_to_image",
        strength=0.5, num_images=2,
    )  # fmt: skip
    assert [(step.image_index, step.step, step.num_steps) for step in updates] == [
        (index, step, 3) for index in (0, 1) for step in (1, 2, 3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["balanced", "turbo"])
@pytest.mark.parametrize("task", ["image_to_image", "inpaint"])
def test_presets_follow_the_schedule_of_the_denoising_steps(
    cache: PipelineCache, spec: ModelSpec, preset: str, task: str
) -> None:
    unet_batches: list[int] = []
    unet = cache.get(spec, LocalModel(Path(spec.name), "", "")).unet
    hook = unet.register_forward_hook(lambda *args: unet_batches.append(len(args[1][0])))
    mid_batches: list[int] = []
    inner = unet.mid_block.register_forward_hook(lambda *args: mid_batches.append(len(args[1][0])))
    images = {"image": make_scene()} | ({"mask_image": make_mask()} if task == "inpaint" else {})
    updates: list[ProgressUpdate] = []
    try:
        options: dict[str, Any] = {"task": task, "strength": 0.5, "scheduler": "DDIM"}
        options["guidance_scale"] = 4.0
        render(cache, spec, images, updates.append, preset=preset, num_inference_steps=12, **options)
    finally:
        hook.remove()
        inner.remove()
    assert [(step.step, step.num_steps) for step in updates] == [(n, 6) for n in range(1, 7)]
    assert unet_batches == [2] * 6
    assert mid_batches == [2, 2, 2, 1], "two of six steps are cached, one has no guidance"


@pytest.mark.parametrize("mask_blur", [0, 8])
def test_inpaint_leaves_unmasked_pixels_as_they_were(cache: PipelineCache, spec: ModelSpec, mask_blur: int) -> None:
    size = (spec.resolution * 2, spec.resolution * 2)
    image, mask = make_scene(size), make_mask(size)
    [result] = render(cache, spec, {"image": image, "mask_image": mask}, task="inpaint", mask_blur=mask_blur)
    changed = (np.asarray(result, int) != np.asarray(image, int)).any(-1)
    masked = np.asarray(mask) > 0
    assert not changed[~masked].any()
    assert changed[masked].mean() > 0.5


def test_only_masked_inpaints_at_the_model_resolution(cache: PipelineCache, spec: ModelSpec) -> None:
    size = (spec.resolution * 4, spec.resolution * 3)
    image, mask = make_scene(size), Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((100, 40, 139, 79), fill=255)
    images = {"image": image, "mask_image": mask}
    [result] = render(cache, spec, images, task="inpaint", only_masked=True)
    changed = np.asarray(result, int) != np.asarray(image, int)
    assert result.size == size
    assert not changed[np.asarray(mask) == 0].any()
    assert changed[np.asarray(mask) > 0].any()


def test_outpaint_keeps_the_image_and_fills_the_margins(cache: PipelineCache, spec: ModelSpec) -> None:
    side = spec.resolution
    image = make_scene((side, side))
    outpaint = (0, 0, side // 2, 16)
    [result] = render(cache, spec, {"image": image}, task="inpaint", outpaint=outpaint)
    assert result.size == (side + side // 2, side + 16)
    assert result.crop((0, 0, side, side)).tobytes() == image.tobytes()
    added = np.asarray(result.crop((side, 0, side + side // 2, side)), float)
    assert added.std() > 1


def test_variation_strength_interpolates_between_two_seeds(cache: PipelineCache, spec: ModelSpec) -> None:
    [first] = render(cache, spec)
    [second] = render(cache, spec, seed=8)
    variations = [render(cache, spec, variation_seed=8, variation_strength=s)[0] for s in (0, 0.3, 1)]
    assert variations[0].tobytes() == first.tobytes()
    assert variations[2].tobytes() == second.tobytes()
    change = np.asarray(variations[1], float) - np.asarray(first, float)
    full_change = np.asarray(second, float) - np.asarray(first, float)
    assert 0 < np.abs(change).mean() < np.abs(full_change).mean()


def test_variation_of_a_batch_is_reproducible_alone(cache: PipelineCache, spec: ModelSpec) -> None:
    options = {"variation_seed": 20, "variation_strength": 0.4}
    variations = render(cache, spec, num_images=4, **options)
    assert len({image.tobytes() for image in variations}) == 4
    [again] = render(cache, spec, **{**options, "variation_seed": 22})
    assert again.tobytes() == variations[2].tobytes()


def test_prompt_weights_apply_only_with_prompt_weighting(cache: PipelineCache, tiny_spec: ModelSpec) -> None:
    spec = tiny_spec  # the built-in model has no weights
    prompt = GenerationRequest("a (fox:1.6) in the snow", model_key=spec.key, seed=7)
    images = {}
    for weighting in (False, True):
        request = GenerationRequest(
            **{**prompt.to_dict(), "prompt_weighting": weighting, "num_inference_steps": 4}
        ).with_defaults(spec)
        pipeline = cache.get(spec, LocalModel(Path(spec.name), "", ""))
        [image] = generate(
            pipeline, request, spec=spec, device=CPU, on_step=lambda _: None,
            cancelled=threading.Event(),
        )  # fmt: skip
        assert image.image is not None
        images[weighting] = image.image.tobytes()
    assert images[False] != images[True]


def test_inpainting_model_rejects_other_tasks(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNet has nine input channels, as in Stable Diffusion Inpainting."""
    import shutil

    from diffusers import UNet2DConditionModel

    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_folder, folder)
    config = {**UNet2DConditionModel.load_config(tiny_folder / "unet"), "in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    entry = {"name": str(folder), "size": "", "speed": "", "quality": "", "resolution": 64}
    spec = parse_model("inpainter", {**entry, "type": "stable_diffusion"})
    cache = PipelineCache(CPU)
    images = {"image": make_scene((64, 64)), "mask_image": make_mask((64, 64))}
    previews: list[ProgressUpdate] = []
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 0)
    [result] = render(cache, spec, images, previews.append, task="inpaint")
    outside = np.asarray(images["mask_image"]) == 0
    assert (np.asarray(result)[outside] == np.asarray(images["image"])[outside]).all()
    assert any(step.preview for step in previews)
    with pytest.raises(InvalidInput, match="inpainter supports inpainting only"):
        render(cache, spec)


def resolved(**fields: Any) -> GenerationRequest:
    fields = {"task": "inpaint", **NAMES, "width": 256, "height": 256, **fields}
    return GenerationRequest("a fox", **fields).with_defaults(STARTER)


def test_mask_of_another_size_and_empty_mask_are_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"mask.*256x256.*64x64"):
        prepare_inputs(resolved(), {"image": make_scene(), "mask_image": make_mask((64, 64))}, STARTER)
    with pytest.raises(InvalidInput, match="mask is empty"):
        prepare_inputs(resolved(), {"image": make_scene(), "mask_image": Image.new("L", (256, 256))}, STARTER)


def test_outpaint_margins_must_leave_room_for_the_image() -> None:
    with pytest.raises(InvalidInput, match="leave no room"):
        prepare_inputs(resolved(outpaint=(128, 0, 128, 0)), {"image": make_scene()}, STARTER)


def test_mask_is_resized_like_the_image() -> None:
    image, mask = make_scene((512, 256)), make_mask((512, 256))
    edit = prepare_inputs(resolved(resize_mode="crop"), {"image": image, "mask_image": mask}, STARTER)
    assert edit is not None
    assert edit.mask is not None
    assert edit.original.tobytes() == image.crop((128, 0, 384, 256)).tobytes()
    assert edit.mask.tobytes() == mask.crop((128, 0, 384, 256)).tobytes()


@given(
    st.tuples(st.integers(8, 4096), st.integers(8, 4096)),
    st.sampled_from(["image_to_image", "inpaint"]),
    st.tuples(*[st.integers(0, 300)] * 4),
)
def test_result_size_is_that_of_the_image_and_the_margins(
    size: tuple[int, int], task: str, outpaint: tuple[int, int, int, int]
) -> None:
    request = GenerationRequest("a fox", task=task, outpaint=outpaint, **NAMES)
    left, top, right, bottom = outpaint if task == "inpaint" else (0, 0, 0, 0)
    expected = (size[0] + left + right, size[1] + top + bottom)
    if max(expected) > 4096:
        with pytest.raises(InvalidInput, match=r"would have \d+x\d+ pixels, but at most 4096"):
            result_size(request, size)
        return
    assert result_size(request, size) == expected
    width, height = expected
    sized = GenerationRequest("a fox", task=task, outpaint=outpaint, width=width, height=height, **NAMES)
    assert sized.with_defaults(STARTER).size == expected


def test_result_size_of_upscaling_is_exact() -> None:
    request = GenerationRequest("", task="upscale", scale=4, **NAMES)
    assert result_size(request, (101, 67)) == (404, 268)


# Below, at and beyond the limits of the models, and no multiples of any step.
SIZES = [(8, 8), (40, 40), (64, 40), (261, 197), (600, 600), (97, 1203), (1500, 90)]


@pytest.mark.parametrize("size", SIZES)
def test_image_to_image_keeps_every_size(cache: PipelineCache, spec: ModelSpec, size: tuple[int, int]) -> None:
    image = make_scene(size)
    [result] = render(cache, spec, {"image": image}, task="image_to_image", num_inference_steps=2, strength=0.5)
    assert result.size == size
    assert result.tobytes() != image.tobytes()


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_inpaint_keeps_every_size_and_every_pixel_outside(
    cache: PipelineCache, spec: ModelSpec, size: tuple[int, int], only_masked: bool
) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, size[1] // 3, size[0] // 2 + max(2, size[0] // 5), size[1] // 2 + 1))
    [result] = render(
        *(cache, spec, {"image": image, "mask_image": mask}),
        task="inpaint", only_masked=only_masked, mask_blur=2, num_inference_steps=2,
    )  # fmt: skip
    changed = (np.asarray(result, int) != np.asarray(image, int)).any(-1)
    masked = np.asarray(mask) > 0
    assert not changed[~masked].any()
    assert changed[masked].any()


@pytest.mark.parametrize(("size", "outpaint"), [((64, 64), (0, 0, 64, 0)), ((203, 61), (1, 7, 0, 13))])
def test_outpaint_adds_exactly_the_requested_pixels(
    cache: PipelineCache, spec: ModelSpec, size: tuple[int, int], outpaint: tuple[int, int, int, int]
) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    [result] = render(cache, spec, {"image": image}, task="inpaint", outpaint=outpaint, num_inference_steps=2)
    left, top, right, bottom = outpaint
    assert result.size == (size[0] + left + right, size[1] + top + bottom)
    assert result.crop((left, top, left + size[0], top + size[1])).tobytes() == image.tobytes()


def test_a_requested_size_is_that_of_the_result(cache: PipelineCache, spec: ModelSpec) -> None:
    images = {"image": make_scene((300, 200))}
    for size in ((1024, 768), (33, 57)):
        [result] = render(
            *(cache, spec, images),
            task="image_to_image", width=size[0], height=size[1], num_inference_steps=2,
        )  # fmt: skip
        assert result.size == size


@pytest.mark.slow
def test_a_note_says_at_which_size_the_model_worked(cache: PipelineCache) -> None:
    local = LocalModel(Path(STARTER.name), "", "")
    for size, note in (((600, 600), "Generated at 512x512 and scaled to 600x600."), ((261, 197), None)):
        request = GenerationRequest(
            "a fox", task="image_to_image", image="a.png", width=size[0], height=size[1], seed=1
        ).with_defaults(STARTER)
        [image] = generate(
            *(cache.get(STARTER, local, "image_to_image"), request),
            spec=STARTER, device=CPU, on_step=lambda _: None, cancelled=threading.Event(),
            images={"image": make_scene(size)},
        )  # fmt: skip
        assert image.notes == ((note,) if note else ())
