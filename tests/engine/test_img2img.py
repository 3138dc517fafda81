"""Pictures changed for real by the built-in model and by tiny random ones."""

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
from canvas.engine.img2img import output_size, pipeline_task, prepare_inputs
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import InvalidInput
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest, ProgressUpdate
from tests.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]
NAMES = {"image": "a.png", "mask_image": "b.png"}


@pytest.fixture(scope="module")
def cache() -> PipelineCache:
    return PipelineCache(CPU)


@pytest.fixture(scope="module", params=["starter", "tiny", "xl"])
def spec(
    request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> ModelSpec:
    if request.param == "xl":
        entry = {
            "name": str(make_tiny_xl(tmp_path_factory.mktemp("xl"))),
            **{"size": "1 MB", "speed": "Fast", "quality": "None", "resolution": 64},
            "type": "stable_diffusion_xl",
            "scheduler": "Euler",
        }
        return parse_model("xl-test", entry)
    return STARTER if request.param == "starter" else tiny_spec


def draw(
    cache: PipelineCache,
    spec: ModelSpec,
    pictures: dict[str, Image.Image] | None = None,
    on_step: Any = lambda step: None,
    **fields: Any,
) -> list[Image.Image]:
    fields = {"num_inference_steps": 6, "seed": 7, "model_key": spec.key, **fields}
    pictures = pictures or {}
    wish = GenerationRequest("a fox in the snow", **{n: NAMES[n] for n in pictures}, **fields)
    if "image" in pictures and wish.width is None:
        width, height = output_size(wish, pictures["image"].size, spec)
        fields |= {"width": width, "height": height}
        wish = GenerationRequest("a fox in the snow", **{n: NAMES[n] for n in pictures}, **fields)
    local = LocalModel(Path(spec.name), "", "")
    pipeline = cache.get(spec, local, pipeline_task(cache.get(spec, local), wish))
    made = generate(
        pipeline,
        wish.with_defaults(spec),
        spec=spec,
        device=CPU,
        on_step=on_step,
        cancelled=threading.Event(),
        pictures=pictures,
    )
    found = []
    for image in made:
        assert image.image is not None
        assert image.task == wish.task
        assert image.image.size == (image.request.width, image.request.height)
        found.append(image.image)
    return found


def scene(size: tuple[int, int] = (256, 256)) -> Image.Image:
    picture = Image.new("RGB", size, "#5588cc")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, size[1] * 2 // 3, *size), fill="#f0f0f0")
    pen.ellipse((size[0] // 3, size[1] // 3, size[0] * 2 // 3, size[1] * 4 // 5), fill="#cc5511")
    return picture


def circle(size: tuple[int, int] = (256, 256)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, 20, size[0] // 2, size[1] // 2), fill=255)
    return mask


def ssim(first: Image.Image, second: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004) over windows of 8 x 8, on brightness."""
    windows = []
    for picture in (first, second):
        grey = np.asarray(picture.convert("L"), float)
        rows, columns = grey.shape[0] // 8, grey.shape[1] // 8
        cut = grey[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8)
        windows.append(cut.transpose(0, 2, 1, 3).reshape(-1, 64))
    a, b = windows
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = a.mean(1), b.mean(1)
    together = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(1)
    top = (2 * mean_a * mean_b + c1) * (2 * together + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (a.var(1) + b.var(1) + c2)
    return float((top / below).mean())


def test_little_strength_stays_near_the_picture_and_much_does_not(
    cache: PipelineCache, spec: ModelSpec
) -> None:
    # What the model's own encoder and decoder leave of a picture is the most that can stay,
    # and a picture from the words alone is like it by chance. The scene in negative, because
    # in its own colours it looks like what the prompt asks for.
    size = (spec.resolution, spec.resolution)
    options: dict[str, Any] = {"task": "image_to_image", "num_inference_steps": 20}
    picture = {"image": ImageChops.invert(scene(size))}
    [untouched] = draw(cache, spec, picture, strength=0.01, guidance_scale=1, **options)
    [by_chance] = draw(cache, spec, num_inference_steps=20)
    little, much = (
        ssim(draw(cache, spec, picture, strength=strength, **options)[0], untouched)
        for strength in (0.1, 0.9)
    )
    assert little > much + 0.1
    assert much < ssim(by_chance, untouched) + 0.1
    if spec is STARTER:  # the others are random: nothing of theirs is like a picture
        assert little > 0.8
        assert much < 0.7


def test_progress_counts_the_steps_that_are_done(cache: PipelineCache, spec: ModelSpec) -> None:
    seen: list[ProgressUpdate] = []
    draw(
        cache, spec, {"image": scene()}, seen.append, task="image_to_image",
        strength=0.5, num_images=2,
    )  # fmt: skip
    assert [(step.image_index, step.step, step.num_steps) for step in seen] == [
        (index, step, 3) for index in (0, 1) for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("preset", ["balanced", "turbo"])
@pytest.mark.parametrize("task", ["image_to_image", "inpaint"])
def test_modes_do_as_many_steps_as_they_say(
    cache: PipelineCache, spec: ModelSpec, preset: str, task: str
) -> None:
    """Their plan of passes is laid over the steps that are done: whole, cached and unguided."""
    passes: list[int] = []
    unet = cache.get(spec, LocalModel(Path(spec.name), "", "")).unet
    hook = unet.register_forward_hook(lambda *told: passes.append(len(told[1][0])))
    innermost: list[int] = []
    inner = unet.mid_block.register_forward_hook(lambda *told: innermost.append(len(told[1][0])))
    pictures = {"image": scene()} | ({"mask_image": circle()} if task == "inpaint" else {})
    seen: list[ProgressUpdate] = []
    try:
        options: dict[str, Any] = {"task": task, "strength": 0.5, "scheduler": "DDIM"}
        options["guidance_scale"] = 4.0
        draw(cache, spec, pictures, seen.append, preset=preset, num_inference_steps=12, **options)
    finally:
        hook.remove()
        inner.remove()
    assert [(step.step, step.num_steps) for step in seen] == [(n, 6) for n in range(1, 7)]
    assert passes == [2] * 6
    assert innermost == [2, 2, 2, 1], "of six steps two are cached, and one is without guidance"


@pytest.mark.parametrize("feather", [0, 8])
def test_inpaint_leaves_unmasked_pixels_as_they_were(
    cache: PipelineCache, spec: ModelSpec, feather: int
) -> None:
    size = (spec.resolution * 2, spec.resolution * 2)
    picture, mask = scene(size), circle(size)
    [found] = draw(
        cache, spec, {"image": picture, "mask_image": mask}, task="inpaint", mask_blur=feather
    )
    changed = (np.asarray(found, int) != np.asarray(picture, int)).any(-1)
    masked = np.asarray(mask) > 0
    assert not changed[~masked].any()
    assert changed[masked].mean() > 0.5


def test_only_the_masked_area_is_drawn_in_full(cache: PipelineCache, spec: ModelSpec) -> None:
    """A picture far larger than the model draws: the rest stays, the part is at its resolution."""
    size = (spec.resolution * 4, spec.resolution * 3)
    picture, mask = scene(size), Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((100, 40, 139, 79), fill=255)
    pictures = {"image": picture, "mask_image": mask}
    [found] = draw(cache, spec, pictures, task="inpaint", only_masked=True)
    changed = np.asarray(found, int) != np.asarray(picture, int)
    assert found.size == size
    assert not changed[np.asarray(mask) == 0].any()
    assert changed[np.asarray(mask) > 0].any()


def test_outpainted_canvas_has_the_new_size_and_the_old_content(
    cache: PipelineCache, spec: ModelSpec
) -> None:
    side = spec.resolution
    picture = scene((side, side))
    extend = (0, 0, side // 2, 16)
    [found] = draw(cache, spec, {"image": picture}, task="inpaint", outpaint=extend)
    assert found.size == (side + side // 2, side + 16)
    assert found.crop((0, 0, side, side)).tobytes() == picture.tobytes()
    added = np.asarray(found.crop((side, 0, side + side // 2, side)), float)
    assert added.std() > 1


def test_variation_goes_from_one_seed_to_the_other(cache: PipelineCache, spec: ModelSpec) -> None:
    [first] = draw(cache, spec)
    [second] = draw(cache, spec, seed=8)
    shares = [
        draw(cache, spec, variation_seed=8, variation_strength=share)[0] for share in (0, 0.3, 1)
    ]
    assert shares[0].tobytes() == first.tobytes()
    assert shares[2].tobytes() == second.tobytes()
    difference = np.asarray(shares[1], float) - np.asarray(first, float)
    whole = np.asarray(second, float) - np.asarray(first, float)
    assert 0 < np.abs(difference).mean() < np.abs(whole).mean()


def test_four_variations_differ_and_one_can_be_made_again(
    cache: PipelineCache, spec: ModelSpec
) -> None:
    sweep = {"variation_seed": 20, "variation_strength": 0.4}
    four = draw(cache, spec, num_images=4, **sweep)
    assert len({picture.tobytes() for picture in four}) == 4
    [again] = draw(cache, spec, **{**sweep, "variation_seed": 22})
    assert again.tobytes() == four[2].tobytes()


def test_weights_in_the_prompt_change_the_picture_only_when_switched_on(
    cache: PipelineCache, spec: ModelSpec
) -> None:
    prompt = GenerationRequest("a (fox:1.6) in the snow", model_key=spec.key, seed=7)
    found = {}
    for switched in (False, True):
        wish = GenerationRequest(
            **{**prompt.to_dict(), "prompt_weighting": switched, "num_inference_steps": 4}
        ).with_defaults(spec)
        pipeline = cache.get(spec, LocalModel(Path(spec.name), "", ""))
        [made] = generate(
            pipeline, wish, spec=spec, device=CPU, on_step=lambda _: None,
            cancelled=threading.Event(),
        )  # fmt: skip
        assert made.image is not None
        found[switched] = made.image.tobytes()
    assert found[False] != found[True]


def test_inpainting_models_inpaint_and_say_that_they_do_nothing_else(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UNet of nine channels, as the inpainting editions of Stable Diffusion have."""
    import shutil

    from diffusers import UNet2DConditionModel

    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_folder, folder)
    config = {**UNet2DConditionModel.load_config(tiny_folder / "unet"), "in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    entry = {"name": str(folder), "size": "", "speed": "", "quality": "", "resolution": 64}
    spec = parse_model("inpainter", {**entry, "type": "stable_diffusion"})
    cache = PipelineCache(CPU)
    pictures = {"image": scene((64, 64)), "mask_image": circle((64, 64))}
    previews: list[ProgressUpdate] = []
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 0)
    [found] = draw(cache, spec, pictures, previews.append, task="inpaint")
    outside = np.asarray(pictures["mask_image"]) == 0
    assert (np.asarray(found)[outside] == np.asarray(pictures["image"])[outside]).all()
    assert any(step.preview for step in previews)
    with pytest.raises(InvalidInput, match="inpaint with inpainter"):
        draw(cache, spec)


def resolved(**fields: Any) -> GenerationRequest:
    given = {"task": "inpaint", **NAMES, "width": 256, "height": 256, **fields}
    return GenerationRequest("a fox", **given).with_defaults(STARTER)


def test_mask_of_another_size_and_empty_mask_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"mask_image.*64x64.*256x256"):
        prepare_inputs(resolved(), {"image": scene(), "mask_image": circle((64, 64))}, STARTER)
    with pytest.raises(InvalidInput, match=r"mask_image.*empty"):
        prepare_inputs(
            resolved(), {"image": scene(), "mask_image": Image.new("L", (256, 256))}, STARTER
        )


def test_extension_leaves_room_for_the_picture() -> None:
    with pytest.raises(InvalidInput, match="extend"):
        prepare_inputs(resolved(outpaint=(128, 0, 128, 0)), {"image": scene()}, STARTER)


def test_mask_and_picture_are_fitted_alike() -> None:
    picture, mask = scene((512, 256)), circle((512, 256))
    edit = prepare_inputs(
        resolved(resize_mode="crop"), {"image": picture, "mask_image": mask}, STARTER
    )
    assert edit is not None
    assert edit.mask is not None
    assert edit.original.tobytes() == picture.crop((128, 0, 384, 256)).tobytes()
    assert edit.mask.tobytes() == mask.crop((128, 0, 384, 256)).tobytes()


@given(
    st.tuples(st.integers(8, 5000), st.integers(8, 5000)),
    st.sampled_from(["image_to_image", "inpaint", "upscale"]),
    st.sampled_from([(0, 0, 0, 0), (128, 0, 0, 64)]),
)
def test_final_size_can_be_made(
    size: tuple[int, int], task: str, extend: tuple[int, int, int, int]
) -> None:
    wish = GenerationRequest("a fox", task=task, outpaint=extend, **NAMES)
    found = output_size(wish, size, STARTER)
    if task == "upscale":
        assert all(side * 2 - 16 < new <= side * 2 for side, new in zip(size, found, strict=True))
    else:
        width, height = found
        assert GenerationRequest(
            "a fox", task=task, width=width, height=height, outpaint=extend, **NAMES
        ).with_defaults(STARTER)


def test_final_size_is_the_pictures_own_where_the_model_can() -> None:
    wish = GenerationRequest("a fox", task="image_to_image", **NAMES)
    assert output_size(wish, (256, 192), STARTER) == (256, 192)
    assert output_size(wish, (261, 197), STARTER) == (256, 192)
    assert output_size(wish, (1024, 512), STARTER) == (512, 256)
