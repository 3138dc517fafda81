"""How long a request will take: from pictures like it, pictures unlike it, and the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.multidiffusion import tile_count
from canvas.engine.optimizations.deepcache import (
    CACHED,
    CACHED_STEP_COST,
    cache_schedule,
    unet_calls_per_step,
)
from canvas.models import addons
from canvas.presets import PRESETS
from canvas.request import GenerationRequest

# Seconds a step of such a request on a device with a dtype, from the history.
MeasuredSeconds = Callable[[GenerationRequest, str, str], float | None]
# A whole UNet reaches this share of the speed of the mix that `measure_speeds` runs.
EFFICIENCY = 0.7
# Gigaflop of one denoiser pass at the native size, where the catalogue does not say.
BY_TYPE = {"stable_diffusion": 803.0, "stable_diffusion_xl": 5980.0}
# Gigaflop a pixel of decoding, counted by torch: by the usual decoder, by the tiny one, and by
# that of the built-in model. A model of so little brings none that computes more than itself.
DECODING, TINY_DECODING, LITTLE_DECODING = 9.6e-3, 5.4e-4, 1e-4
SMALL_MODEL_GFLOPS = 50.0  # gigaflop of a pass
# What a pass and the rest of a picture cost beside their arithmetic, in idle layers, found
# by timing the built-in model, whose arithmetic is little.
LAYERS_OF_PASS, LAYERS_OF_REST = 1150, 950


def estimate_seconds(request: GenerationRequest, spec: ModelSpec, device: Device) -> float | None:
    """Seconds of one picture of a resolved request; None on a device that was not measured."""
    gigaflop = spec.gflops_per_step or BY_TYPE.get(spec.type)
    if device.gigaflops is None or gigaflop is None or not request.needs_model:
        return None
    assert request.width and request.height  # noqa: S101 - the request is resolved
    size = (request.width, request.height)
    windows, width, height = 1, *size
    if request.task == "upscale":  # by windows, which overlap
        width, height = (min(length, spec.resolution) for length in size)
        windows = tile_count(size, spec.resolution, 1)
    guided = (request.guidance_scale or 0) > 1
    preset, steps = PRESETS[request.preset], request.step_counts[1]
    passes = steps * unet_calls_per_step(preset, steps, guided=guided)
    work = gigaflop * passes * windows * width * height / spec.resolution**2
    work += _decoding(request, spec) * request.width * request.height
    cached = cache_schedule(preset, steps).count(CACHED)
    layers = LAYERS_OF_PASS * (steps - cached + cached * CACHED_STEP_COST) * windows
    layers += LAYERS_OF_REST
    return work / (device.gigaflops * EFFICIENCY) + layers * device.layer_seconds


def _decoding(request: GenerationRequest, spec: ModelSpec) -> float:
    if 0 < spec.gflops_per_step < SMALL_MODEL_GFLOPS:
        return LITTLE_DECODING
    tiny = addons.TAESD in addons.required(request.preset, spec)
    return TINY_DECODING if tiny else DECODING


def estimate_duration(
    request: GenerationRequest, spec: ModelSpec, device: Device, measured: MeasuredSeconds
) -> float | None:
    """Seconds of all pictures of a request once its model is loaded; None when unknown.

    Learned from pictures of the same mode. Before there are any the start-up measurement
    tells, corrected by how far it is off for a mode that was timed here.
    """
    request = request.with_defaults(spec)
    timed = _measured_seconds(request, device, measured)
    if timed is not None:
        return timed * request.num_images
    thought = estimate_seconds(request, spec, device)
    if thought is None:
        return None
    for preset in PRESETS:
        other = replace(
            request, preset=preset, num_inference_steps=None, guidance_scale=None, scheduler=None
        ).with_defaults(spec)
        there = _measured_seconds(other, device, measured) if preset != request.preset else None
        if there is not None:
            thought *= there / (estimate_seconds(other, spec, device) or there)
            break
    return thought * request.num_images


def _measured_seconds(
    request: GenerationRequest, device: Device, measured: MeasuredSeconds
) -> float | None:
    """Seconds of one such picture by the timings of its mode; None before there are any."""
    per_step = measured(request, device.name, device.dtype)
    return None if per_step is None else per_step * request.step_counts[1]
