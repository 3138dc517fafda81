"""Text to image with the built-in model and tiny random ones."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageChops
from PIL.Image import Image

from canvas.benchmark.similarity import ssim
from canvas.catalog import ASSETS, MODELS, ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import FLOAT32_NOTE, generate, guarded_decoding
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import GenerationCancelled, GenerationFailed
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.schedulers import SCHEDULERS
from tests.conftest import slow_params

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
BLACK, GREY = torch.full((1, 3, 2, 2), -1.0), torch.zeros(1, 3, 2, 2)
NAN = torch.tensor([[0.0, float("nan")]])
NEARLY_BLACK = torch.cat([BLACK, torch.full((1, 3, 2, 2), -0.99)])
BLACK_IN_8_BITS = torch.full((1, 3, 2, 2), -254 / 255)


def local(spec: ModelSpec) -> LocalModel:
    return LocalModel(Path(spec.name), "", "")


def same(one: Image, other: Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


@pytest.fixture(scope="module")
def starter() -> Any:
    return PipelineCache(CPU).get(STARTER, local(STARTER))


@pytest.fixture(scope="module")
def tiny(tiny_spec: ModelSpec) -> Any:
    return PipelineCache(CPU).get(tiny_spec, local(tiny_spec))


def make_request(spec: ModelSpec, **options: Any) -> GenerationRequest:
    options = {"num_inference_steps": 3, "seed": 7, "model_key": spec.key, **options}
    return GenerationRequest("a fox in the snow", **options).with_defaults(spec)


def render_batch(
    pipeline: Any,
    request: GenerationRequest,
    spec: ModelSpec = STARTER,
    device: Device = CPU,
    on_step: Any = lambda step: None,
    cancelled: threading.Event | None = None,
) -> list[GeneratedImage]:
    images = generate(
        pipeline,
        request,
        spec=spec,
        device=device,
        on_step=on_step,
        cancelled=cancelled or threading.Event(),
        model_revision="abc",
    )
    return list(images)


def render(pipeline: Any, request: GenerationRequest, spec: ModelSpec = STARTER) -> Image:
    (image,) = render_batch(pipeline, request, spec)
    assert image.image is not None
    return image.image


def test_image_and_its_metadata(starter: Any) -> None:
    request = make_request(STARTER, style="cartoon", width=200, height=136)
    (image,) = render_batch(starter, request)
    assert image.image is not None
    assert image.image.size == (200, 136)
    assert image.image.mode == "RGB"
    assert image.request == request
    assert image.enhanced_prompt.startswith("a cartoon fox in the snow")
    assert (image.device, image.dtype, image.model_revision) == ("cpu", "float32", "abc")
    assert image.generation_time > 0
    assert image.notes == ()


def test_prompt_is_truncated_at_the_token_limit(tiny: Any, tiny_spec: ModelSpec) -> None:
    """The tokenizer of the built-in model accepts more tokens than the model was trained with."""
    spec = replace(tiny_spec, prompt_tokens=27)
    short = "a fox in the snow" + " and a fox" * 7
    full, truncated = (
        render(tiny, replace(make_request(spec), prompt=prompt), spec)
        for prompt in (short + " and a red boat on a lake" * 5, short + " and")
    )
    assert same(full, truncated)


def test_quality_equals_plain_diffusers(tiny: Any, tiny_spec: ModelSpec) -> None:
    """In float32, with the same scheduler, seed and steps."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    request = make_request(tiny_spec, scheduler="Euler a", guidance_scale=5.0, negative_prompt="a house")
    ours = render(tiny, request, tiny_spec)
    plain = StableDiffusionPipeline.from_pretrained(tiny_spec.name)
    plain.scheduler = EulerAncestralDiscreteScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    theirs = plain(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert same(ours, theirs)


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**53 - 10), num_images=st.integers(2, 4), scheduler=st.sampled_from(sorted(SCHEDULERS)))
def test_image_of_a_batch_is_reproducible_alone(
    tiny: Any, tiny_spec: ModelSpec, seed: int, num_images: int, scheduler: str
) -> None:
    request = make_request(tiny_spec, seed=seed, num_images=num_images, scheduler=scheduler)
    batch = render_batch(tiny, request, tiny_spec)
    assert [image.request.seed for image in batch] == list(range(seed, seed + num_images))
    index = seed % num_images
    alone = render(tiny, batch[index].request, tiny_spec)
    assert batch[index].image is not None
    assert same(alone, batch[index].image)
    assert batch[0].image is not None
    assert batch[1].image is not None
    assert not same(batch[0].image, batch[1].image)


@pytest.mark.parametrize("scheduler", ["Euler a", *slow_params(*sorted(SCHEDULERS.keys() - {"Euler a"}))])
def test_every_scheduler_works_and_is_removed(starter: Any, scheduler: str) -> None:
    own = starter.scheduler
    reference = make_request(STARTER, num_inference_steps=2, width=128, height=128)
    before = render(starter, reference)
    for steps in (1, 4):
        request = replace(reference, scheduler=scheduler, num_inference_steps=steps)
        low, high = render(starter, request).convert("L").getextrema()
        assert low != high, "an image of one colour"
    assert starter.scheduler is own
    assert same(before, render(starter, reference))


@pytest.mark.slow
def test_guidance_and_seed_change_the_image(starter: Any) -> None:
    request = make_request(STARTER)
    first = render(starter, request)
    assert same(first, render(starter, request))
    assert not same(first, render(starter, replace(request, guidance_scale=4.0)))
    assert not same(first, render(starter, replace(request, seed=8)))


def test_progress_is_reported_per_step(starter: Any) -> None:
    steps: list[ProgressUpdate] = []
    render_batch(starter, make_request(STARTER, num_inference_steps=4, num_images=2), on_step=steps.append)
    assert [(step.image_index, step.step) for step in steps] == [
        (image, step) for image in (0, 1) for step in (1, 2, 3, 4)
    ]
    assert {step.num_steps for step in steps} == {4}
    assert steps[-1].fraction == 1
    assert steps[0].seconds_left is None, "unknown after one step"
    assert all(step.seconds_left > 0 for step in steps[1:4] if step.seconds_left is not None)
    assert steps[1].seconds_left is not None
    assert steps[-1].seconds_left is not None


@pytest.mark.slow
def test_previews_have_a_delay_and_an_interval(starter: Any) -> None:
    seen: list[tuple[float, Any]] = []
    began = time.perf_counter()
    request = make_request(STARTER, num_inference_steps=100)
    render_batch(starter, request, on_step=lambda step: seen.append((time.perf_counter(), step.preview)))
    first = next(preview for _, preview in seen if preview is not None)
    assert max(first.size) >= 128
    times = [moment for moment, preview in seen if preview is not None]
    assert times[0] - began >= 0.25
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(times))


def test_cancel_within_one_step_leaves_the_pipeline_usable(starter: Any) -> None:
    request = make_request(STARTER, num_inference_steps=6)
    expected = render(starter, request)
    cancelled = threading.Event()
    steps: list[ProgressUpdate] = []

    def stop_at_two(step: ProgressUpdate) -> None:
        steps.append(step)
        if step.step == 2:
            cancelled.set()

    own = starter.scheduler
    with pytest.raises(GenerationCancelled):
        render_batch(starter, request, on_step=stop_at_two, cancelled=cancelled)
    assert [step.step for step in steps] == [1, 2]
    assert starter.scheduler is own
    assert not starter.unet._forward_hooks
    assert not starter.unet._forward_pre_hooks
    assert same(expected, render(starter, request))


def test_cancel_between_two_images_keeps_the_first(tiny: Any, tiny_spec: ModelSpec) -> None:
    cancelled = threading.Event()
    images = generate(
        tiny,
        make_request(tiny_spec, num_images=3),
        spec=tiny_spec,
        device=CPU,
        on_step=lambda step: None,
        cancelled=cancelled,
    )
    assert next(images).image is not None
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        next(images)


def test_empty_half_precision_image_is_decoded_in_float32(tiny_spec: ModelSpec) -> None:
    """The decoder's weights overflow float16, as those of SDXL do, but not float32."""
    device = Device("cpu", "float16", "test")
    pipeline = PipelineCache(device).get(tiny_spec, local(tiny_spec))
    decoder = pipeline.vae.decoder
    with torch.no_grad():
        decoder.conv_norm_out.weight.fill_(6e4)
        decoder.conv_out.weight.fill_(1.0)
        decoder.conv_out.weight[:, ::2] = -1.0
    (image,) = render_batch(pipeline, make_request(tiny_spec), tiny_spec, device)
    assert image.notes == (FLOAT32_NOTE,)
    assert image.image is not None
    assert image.image.getextrema() != ((0, 0),) * 3
    assert pipeline.vae.dtype == torch.float16, "the next image is decoded in float16"


def test_nan_latents_are_reported(tiny_spec: ModelSpec) -> None:
    pipeline = PipelineCache(CPU).get(tiny_spec, local(tiny_spec))
    with torch.no_grad():
        pipeline.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(GenerationFailed, match="contain NaN"):
        render_batch(pipeline, make_request(tiny_spec), tiny_spec)


def test_error_of_the_pipeline_is_reported(tiny_spec: ModelSpec) -> None:
    pipeline = PipelineCache(CPU).get(tiny_spec, local(tiny_spec))
    pipeline.unet.conv_in = torch.nn.Conv2d(5, 16, 3)
    with pytest.raises(GenerationFailed, match="tiny-test could not generate this image"):
        render_batch(pipeline, make_request(tiny_spec), tiny_spec)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_balanced_is_close_to_quality(starter: Any, seed: int) -> None:
    request = GenerationRequest("a fox in the snow", seed=seed)
    quality = render(starter, request.with_defaults(STARTER))
    balanced = render(starter, replace(request, preset="balanced").with_defaults(STARTER))
    assert 0.9 < ssim(quality, balanced) < 1


SHORT_OF_MEMORY = """
import resource, sys, threading
from pathlib import Path
from canvas.catalog import MODELS, parse_model
from canvas.engine.device import Device
from canvas.models.download import LocalModel
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import OutOfMemory
from canvas.request import GenerationRequest
import dataclasses

device = Device("cpu", "float32", "")
spec = dataclasses.replace(MODELS["starter"], resolution=2048)
pipeline = PipelineCache(device).get(spec, LocalModel(Path(spec.name), "", ""))

def render(side, on_step=lambda step: None):
    request = GenerationRequest("a fox", width=side, height=side, num_inference_steps=1, seed=1)
    return list(generate(pipeline, request.with_defaults(spec), spec=spec, device=device,
                    on_step=on_step, cancelled=threading.Event()))

def limit(step=None):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))

spec = dataclasses.replace(spec, resolution=256)
render(128)
spec = dataclasses.replace(spec, resolution=2048)
_, hard = resource.getrlimit(resource.RLIMIT_AS)
spec, room = dataclasses.replace(spec, resolution=512), 2**30  # the threads of a busy machine take some of it
limit()
try:
    render(1024)
except OutOfMemory as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
room = 2**27
try:
    render(1024, on_step=limit)
except OutOfMemory as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
spec = dataclasses.replace(spec, resolution=256)
print(len(render(128)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="setrlimit limits memory on Linux only")
def test_out_of_memory_suggests_a_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], cwd=ASSETS.parent, capture_output=True, text=True, check=False
    )
    before, during, _ = done.stdout.splitlines()
    assert before.startswith("1024x1024 needs 4.61 GB of memory, "), done.stderr
    assert "would fit" in before
    assert during.startswith("Ran out of memory at 1024x1024. "), done.stderr
    assert "would fit" in during or "GB are free" in during
    assert done.stdout.splitlines()[-1] == "1", "the next request works"


class Vae:
    """Gives one image in 16 bits and another in float32."""

    def __init__(self, dtype: torch.dtype, in_16_bits: torch.Tensor, in_float32: torch.Tensor) -> None:
        self.dtype = dtype
        self._results = {dtype: in_16_bits, torch.float32: in_float32}
        self.dtypes: list[torch.dtype] = []

    def to(self, *, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def decode(self, latents: torch.Tensor, *, return_dict: bool = True) -> Any:
        assert self.dtype == latents.dtype
        self.dtypes.append(self.dtype)
        pixels = self._results[self.dtype]
        return SimpleNamespace(sample=pixels) if return_dict else (pixels,)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize(
    ("dtype", "pixels", "again"),
    [
        (torch.float16, GREY, False),
        (torch.float16, NEARLY_BLACK, False),
        (torch.float16, BLACK, True),
        (torch.float16, BLACK_IN_8_BITS, True),
        (torch.float16, NAN, True),
        (torch.float32, BLACK, False),
    ],
    ids=["grey", "nearly black", "black", "black in 8 bits", "nan", "black in float32"],
)
def test_an_empty_image_in_16_bits_is_decoded_again(
    dtype: torch.dtype, pixels: torch.Tensor, again: bool, return_dict: bool
) -> None:
    vae = Vae(dtype, pixels, GREY if dtype != torch.float32 else pixels)
    with guarded_decoding(vae) as notes:
        decoded = vae.decode(torch.ones(1, dtype=dtype), return_dict=return_dict)
    found = decoded.sample if return_dict else decoded[0]
    assert torch.equal(found, GREY if again else pixels)
    assert notes == [FLOAT32_NOTE] * again
    assert vae.dtypes == [dtype, torch.float32][: 1 + again]
    assert vae.dtype == dtype
    assert vars(vae).get("decode") is None


def test_latents_and_pixels_that_are_not_finite_are_errors() -> None:
    vae = Vae(torch.float16, NAN, NAN)
    with guarded_decoding(vae):
        with pytest.raises(GenerationFailed, match="latents"):
            vae.decode(torch.tensor([1.0, float("inf")], dtype=torch.float16))
        assert vae.dtypes == []
        with pytest.raises(GenerationFailed, match="pixels"):
            vae.decode(torch.ones(1, dtype=torch.float16))
    assert vae.dtype == torch.float16
