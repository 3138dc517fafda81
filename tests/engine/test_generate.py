"""Pictures made for real by the built-in model and by tiny random ones."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
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
from canvas.engine.generate import NOTE, generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import GenerationCancelled, GenerationFailed
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.schedulers import SCHEDULERS

CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]


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


def request(spec: ModelSpec, **options: Any) -> GenerationRequest:
    options = {"num_inference_steps": 3, "seed": 7, "model_key": spec.key, **options}
    return GenerationRequest("a fox in the snow", **options).with_defaults(spec)


def make(
    pipeline: Any,
    wish: GenerationRequest,
    spec: ModelSpec = STARTER,
    device: Device = CPU,
    on_step: Any = lambda step: None,
    cancelled: threading.Event | None = None,
) -> list[GeneratedImage]:
    pictures = generate(
        pipeline,
        wish,
        spec=spec,
        device=device,
        on_step=on_step,
        cancelled=cancelled or threading.Event(),
        model_revision="abc",
    )
    return list(pictures)


def picture(pipeline: Any, wish: GenerationRequest, spec: ModelSpec = STARTER) -> Image:
    (made,) = make(pipeline, wish, spec)
    assert made.image is not None
    return made.image


def test_a_picture_and_its_record(starter: Any) -> None:
    wish = request(STARTER, style="cartoon", width=200, height=136)
    (made,) = make(starter, wish)
    assert made.image is not None
    assert made.image.size == (200, 136)
    assert made.image.mode == "RGB"
    assert made.request == wish
    assert made.enhanced_prompt.startswith("a fox in the snow, cartoon")
    assert (made.device, made.dtype, made.model_revision) == ("cpu", "float32", "abc")
    assert made.generation_time > 0
    assert made.notes == ()


def test_words_beyond_what_the_model_reads_change_nothing(starter: Any) -> None:
    """Its tokenizer would take them, and they would stand where the drawing is held."""
    short = "a fox in the snow" + " and a fox" * 7
    picture_of_all, picture_of_some = (
        picture(starter, replace(request(STARTER), prompt=prompt))
        for prompt in (short + " and a red boat on a lake" * 5, short + " and")
    )
    assert same(picture_of_all, picture_of_some)


def test_the_same_pixels_as_plain_diffusers(tiny: Any, tiny_spec: ModelSpec) -> None:
    """In float32, with the same scheduler, seed and steps: the mode for Quality changes nothing."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    wish = request(tiny_spec, scheduler="Euler a", guidance_scale=5.0, negative_prompt="a house")
    ours = picture(tiny, wish, tiny_spec)
    plain = StableDiffusionPipeline.from_pretrained(tiny_spec.name)
    plain.scheduler = EulerAncestralDiscreteScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    theirs = plain(
        wish.prompt,
        negative_prompt=wish.negative_prompt,
        width=wish.width,
        height=wish.height,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert same(ours, theirs)


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**53 - 10),
    num_images=st.integers(2, 4),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
)
def test_picture_i_of_a_batch_can_be_made_again_alone(
    tiny: Any, tiny_spec: ModelSpec, seed: int, num_images: int, scheduler: str
) -> None:
    wish = request(tiny_spec, seed=seed, num_images=num_images, scheduler=scheduler)
    batch = make(tiny, wish, tiny_spec)
    assert [made.request.seed for made in batch] == list(range(seed, seed + num_images))
    index = seed % num_images
    alone = picture(tiny, batch[index].request, tiny_spec)
    assert batch[index].image is not None
    assert same(alone, batch[index].image)
    assert batch[0].image is not None
    assert batch[1].image is not None
    assert not same(batch[0].image, batch[1].image)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_makes_a_picture_and_leaves_no_trace(starter: Any, scheduler: str) -> None:
    own = starter.scheduler
    reference = request(STARTER, num_inference_steps=2, width=128, height=128)
    before = picture(starter, reference)
    for steps in (1, 4):
        wish = replace(reference, scheduler=scheduler, num_inference_steps=steps)
        low, high = picture(starter, wish).convert("L").getextrema()
        assert low != high, "a picture of one colour"
    assert starter.scheduler is own
    assert same(before, picture(starter, reference))


def test_guidance_and_seed_matter(starter: Any) -> None:
    wish = request(STARTER)
    first = picture(starter, wish)
    assert same(first, picture(starter, wish))
    assert not same(first, picture(starter, replace(wish, guidance_scale=4.0)))
    assert not same(first, picture(starter, replace(wish, seed=8)))


def test_steps_tell_how_far_it_is(starter: Any) -> None:
    steps: list[ProgressUpdate] = []
    make(starter, request(STARTER, num_inference_steps=4, num_images=2), on_step=steps.append)
    assert [(step.image_index, step.step) for step in steps] == [
        (image, step) for image in (0, 1) for step in (1, 2, 3, 4)
    ]
    assert {step.num_steps for step in steps} == {4}
    assert steps[-1].fraction == 1
    assert steps[0].seconds_left is None, "nothing is known yet"
    assert all(step.seconds_left > 0 for step in steps[1:4] if step.seconds_left is not None)
    assert steps[1].seconds_left is not None
    assert steps[-1].seconds_left is not None


def test_previews_come_now_and_then_and_none_of_a_quick_picture(starter: Any) -> None:
    seen: list[tuple[float, Any]] = []
    began = time.perf_counter()
    wish = request(STARTER, num_inference_steps=100)
    make(starter, wish, on_step=lambda step: seen.append((time.perf_counter(), step.preview)))
    first = next(preview for _, preview in seen if preview is not None)
    assert max(first.size) >= 128
    times = [moment for moment, preview in seen if preview is not None]
    assert times[0] - began >= 0.25
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(times))


def test_stops_within_one_step_and_is_ready_again(starter: Any) -> None:
    wish = request(STARTER, num_inference_steps=6)
    whole = picture(starter, wish)
    cancelled = threading.Event()
    steps: list[ProgressUpdate] = []

    def stop_at_two(step: ProgressUpdate) -> None:
        steps.append(step)
        if step.step == 2:
            cancelled.set()

    own = starter.scheduler
    with pytest.raises(GenerationCancelled):
        make(starter, wish, on_step=stop_at_two, cancelled=cancelled)
    assert [step.step for step in steps] == [1, 2]
    assert starter.scheduler is own
    assert not starter.unet._forward_hooks
    assert not starter.unet._forward_pre_hooks
    assert same(whole, picture(starter, wish))


def test_a_stop_between_two_pictures_keeps_the_first(tiny: Any, tiny_spec: ModelSpec) -> None:
    cancelled = threading.Event()
    pictures = generate(
        tiny,
        request(tiny_spec, num_images=3),
        spec=tiny_spec,
        device=CPU,
        on_step=lambda step: None,
        cancelled=cancelled,
    )
    assert next(pictures).image is not None
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        next(pictures)


def test_an_empty_half_precision_picture_is_decoded_again(tiny_spec: ModelSpec) -> None:
    """The decoder's weights overflow float16, as those of SDXL do, but not float32."""
    device = Device("cpu", "float16", "for the test")
    pipeline = PipelineCache(device).get(tiny_spec, local(tiny_spec))
    decoder = pipeline.vae.decoder
    with torch.no_grad():
        decoder.conv_norm_out.weight.fill_(6e4)
        decoder.conv_out.weight.fill_(1.0)
        decoder.conv_out.weight[:, ::2] = -1.0
    (made,) = make(pipeline, request(tiny_spec), tiny_spec, device)
    assert made.notes == (NOTE,)
    assert made.image is not None
    assert made.image.getextrema() != ((0, 0),) * 3
    assert pipeline.vae.dtype == torch.float16, "the next picture is decoded fast again"


def test_numbers_that_overflow_are_an_error_in_words(tiny_spec: ModelSpec) -> None:
    pipeline = PipelineCache(CPU).get(tiny_spec, local(tiny_spec))
    with torch.no_grad():
        pipeline.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(GenerationFailed, match="overflowed"):
        make(pipeline, request(tiny_spec), tiny_spec)


def test_a_pipeline_that_breaks_is_an_error_in_words(tiny_spec: ModelSpec) -> None:
    pipeline = PipelineCache(CPU).get(tiny_spec, local(tiny_spec))
    pipeline.unet.conv_in = torch.nn.Conv2d(5, 16, 3)
    with pytest.raises(GenerationFailed, match="tiny-test could not make this picture"):
        make(pipeline, request(tiny_spec), tiny_spec)


@pytest.mark.parametrize("seed", [1, 2])
def test_balanced_is_close_to_quality(starter: Any, seed: int) -> None:
    wish = GenerationRequest("a fox in the snow", seed=seed)
    quality = picture(starter, wish.with_defaults(STARTER))
    balanced = picture(starter, replace(wish, preset="balanced").with_defaults(STARTER))
    assert 0.9 < ssim(quality, balanced) < 1


SHORT_OF_MEMORY = """
import resource, sys, threading
from pathlib import Path
from canvas.catalog import MODELS, parse_model
from canvas.engine.device import Device
from canvas.models.download import LocalModel
from canvas.engine.generation import run
from canvas.engine.pipelines import PipelineCache
from canvas.errors import OutOfMemory
from canvas.request import GenerationRequest
import dataclasses

device = Device("cpu", "float32", "")
spec = dataclasses.replace(MODELS["starter"], resolution=2048)
pipeline = PipelineCache(device).get(spec, LocalModel(Path(spec.name), "", ""))

def make(side, on_step=lambda step: None):
    request = GenerationRequest("a fox", width=side, height=side, num_inference_steps=1, seed=1)
    return list(run(pipeline, request.resolve(spec), spec=spec, device=device,
                    on_step=on_step, cancelled=threading.Event()))

def limit(step=None):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))

spec = dataclasses.replace(spec, resolution=256)
make(128)
spec = dataclasses.replace(spec, resolution=2048)
_, hard = resource.getrlimit(resource.RLIMIT_AS)
spec, room = dataclasses.replace(spec, resolution=512), 2**29
limit()
try:
    make(1024)
except OutOfMemory as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
room = 2**27
try:
    make(1024, on_step=limit)
except OutOfMemory as error:
    print(error)
spec = dataclasses.replace(spec, resolution=256)
print(len(make(128)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited the Linux way")
def test_running_out_of_memory_names_what_would_fit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY],
        cwd=ASSETS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    before, under_way, _ = done.stdout.splitlines()
    assert before.startswith("1024x1024 needs 4.61 GB of memory, "), done.stderr
    assert "would fit" in before
    assert under_way.startswith("Memory ran out at 1024x1024. "), done.stderr
    assert "would fit" in under_way or "GB are free" in under_way
    assert done.stdout.splitlines()[-1] == "1", "the next picture is made"
