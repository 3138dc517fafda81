"""How long a request will take: from pictures like it, pictures unlike it, and the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.multidiffusion import count
from canvas.engine.optimizations.deepcache import CACHED, SHARE_OF_CACHED, passes_per_step, plan
from canvas.models import addons
from canvas.presets import MODES
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
LITTLE = 50.0  # gigaflop of a pass
# What a pass and the rest of a picture cost beside their arithmetic, in idle layers, found
# by timing the built-in model, whose arithmetic is little.
LAYERS_OF_PASS, LAYERS_OF_REST = 1150, 950


def seconds_of_picture(request: GenerationRequest, spec: ModelSpec, device: Device) -> float | None:
    """Seconds of one picture of a resolved request; None on a device that was not measured."""
    gigaflop = spec.gigaflops or BY_TYPE.get(spec.type)
    if device.gigaflops is None or gigaflop is None or not request.needs_model:
        return None
    assert request.width and request.height  # noqa: S101 - the request is resolved
    size = (request.width, request.height)
    windows, width, height = 1, *size
    if request.task == "upscale":  # by windows, which overlap
        width, height = (min(length, spec.resolution) for length in size)
        windows = count(size, spec.resolution, 1)
    guided = (request.guidance_scale or 0) > 1
    mode, steps = MODES[request.mode], request.steps[1]
    passes = steps * passes_per_step(mode, steps, guided=guided)
    work = gigaflop * passes * windows * width * height / spec.resolution**2
    work += _decoding(request, spec) * request.width * request.height
    cached = plan(mode, steps).count(CACHED)
    layers = LAYERS_OF_PASS * (steps - cached + cached * SHARE_OF_CACHED) * windows
    layers += LAYERS_OF_REST
    return work / (device.gigaflops * EFFICIENCY) + layers * device.layer_seconds


def _decoding(request: GenerationRequest, spec: ModelSpec) -> float:
    if 0 < spec.gigaflops < LITTLE:
        return LITTLE_DECODING
    tiny = addons.TINY_DECODER in addons.needed(request.mode, spec)
    return TINY_DECODING if tiny else DECODING


def expected_seconds(
    request: GenerationRequest, spec: ModelSpec, device: Device, measured: MeasuredSeconds
) -> float | None:
    """Seconds of all pictures of a request once its model is loaded; None when unknown.

    Learned from pictures of the same mode. Before there are any the start-up measurement
    tells, corrected by how far it is off for a mode that was timed here.
    """
    request = request.resolve(spec)
    timed = _timed(request, device, measured)
    if timed is not None:
        return timed * request.num_images
    thought = seconds_of_picture(request, spec, device)
    if thought is None:
        return None
    for mode in MODES:
        other = replace(
            request, mode=mode, num_inference_steps=None, guidance_scale=None, scheduler=None
        ).resolve(spec)
        there = _timed(other, device, measured) if mode != request.mode else None
        if there is not None:
            thought *= there / (seconds_of_picture(other, spec, device) or there)
            break
    return thought * request.num_images


def _timed(request: GenerationRequest, device: Device, measured: MeasuredSeconds) -> float | None:
    """Seconds of one such picture by the timings of its mode; None before there are any."""
    per_step = measured(request, device.name, device.dtype)
    return None if per_step is None else per_step * request.steps[1]
