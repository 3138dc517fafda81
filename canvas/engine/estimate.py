"""Estimates how long a request takes, from generation times or from the speed of the device."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.masks import whole_area
from canvas.engine.multidiffusion import tile_count
from canvas.engine.optimizations.deepcache import CACHED, CACHED_STEP_COST, cache_schedule, unet_calls_per_step
from canvas.presets import PRESETS, tiny_decoder
from canvas.request import GenerationRequest

# The latest requests of the same model and task on a device in a dtype, with the seconds of each image.
RecentTimes = Callable[[GenerationRequest, str, str], list[tuple[GenerationRequest, float]]]
MAX_TIMES = 20  # that count, the latest ones
# A whole UNet reaches this share of the speed of the probe workload in `device`.
EFFICIENCY = 0.7
# GFLOP of one UNet call, and the side of the image for which it holds, where the catalog does not
# give it: whatever size an entry names, the UNet is that of its type.
GFLOPS_BY_TYPE = {"stable_diffusion": (803.0, 512), "stable_diffusion_xl": (5980.0, 1024)}
# GFLOP per pixel of decoding: AutoencoderKL, AutoencoderTiny, and the built-in model's VAE.
# Counted with torch's FlopCounterMode.
VAE_DECODING, TINY_VAE_DECODING, SMALL_MODEL_DECODING = 9.6e-3, 5.4e-4, 1e-4
# GFLOP of a ControlNet per GFLOP of the UNet call that it guides, of Stable Diffusion 1.5 and SDXL.
# Counted with torch's FlopCounterMode.
CONTROLNET_COST, XL_CONTROLNET_COST = 0.353, 0.447
# The attention of an IP-Adapter adds 0.3 % at most, and does not count. FLUX.2-klein attends to the
# reference images themselves; diffusers reduces them to this area.
REFERENCE_PIXELS = 1024**2
NOMINAL_GFLOPS = 100.0  # of a device of unknown speed, where only proportions matter
SMALL_MODEL_GFLOPS = 50.0  # per UNet call; such models bring a small VAE
# Kernel launches per step and per image besides the arithmetic, fitted to generation times of
# the built-in model, which has little of it.
KERNELS_PER_STEP, KERNELS_PER_IMAGE = 1150, 950


def estimate_duration(
    request: GenerationRequest, spec: ModelSpec, device: Device, recent_times: RecentTimes
) -> float | None:
    """Seconds for all images of a request once the model is loaded; None if unknown.

    The number of operations gives the proportions between requests, and the median of earlier
    generation times the scale. All presets share that scale, so that their order is right.
    """
    request = request.with_defaults(spec)
    times = recent_times(request, device.name, device.dtype)
    times = [time for time in times if time[0].size == request.size] or times
    if times:
        scale = median(seconds / _relative_cost(past, spec, device) for past, seconds in times[:MAX_TIMES])
        return scale * _relative_cost(request, spec, device) * request.num_images
    predicted = estimate_seconds(request, spec, device)
    return None if predicted is None else predicted * request.num_images


def estimate_seconds(request: GenerationRequest, spec: ModelSpec, device: Device) -> float | None:
    """Seconds for one image of a resolved request, from the number of operations.

    None if the speed of the device or the size of the model is unknown.
    """
    known = spec.gflops_per_step or spec.type in GFLOPS_BY_TYPE
    if device.gflops is None or not known or not request.needs_model:
        return None
    return _relative_cost(request, spec, device)


def _relative_cost(request: GenerationRequest, spec: ModelSpec, device: Device) -> float:
    """Seconds for one image of a resolved request; only in proportion where the speed or size is unknown."""
    if not request.needs_model:
        return request.size[0] * request.size[1] / 1e6
    gflops_per_call, side = spec.gflops_per_step, spec.resolution
    if not gflops_per_call:
        gflops_per_call, side = GFLOPS_BY_TYPE.get(spec.type, (GFLOPS_BY_TYPE["stable_diffusion"][0], side))
    width, height = request.size if request.task == "upscale" else whole_area(request.size, 8, spec).size
    gflop = _decoding_gflop_per_pixel(request, spec) * width * height
    tiles = 1
    if request.task == "upscale":
        width, height = (min(length, spec.resolution) for length in request.size)
        tiles = tile_count(request.size, spec.resolution, 1)
    guided = (request.guidance_scale or 0) > 1
    preset, steps = PRESETS[request.preset], request.step_counts[1]
    unet_calls = steps * unet_calls_per_step(preset, steps, guided=guided) * tiles
    cost = XL_CONTROLNET_COST if spec.type == "stable_diffusion_xl" else CONTROLNET_COST
    net_calls = sum(item.end - item.start for item in request.control_images) * cost
    num_references = len(request.reference_images) if "klein" in spec.name.lower() else 0
    pixels = width * height + num_references * REFERENCE_PIXELS
    gflop += gflops_per_call * unet_calls * (1 + net_calls) * pixels / side**2
    cached = cache_schedule(preset, steps).count(CACHED)
    kernels = KERNELS_PER_STEP * (steps - cached + cached * CACHED_STEP_COST) * tiles + KERNELS_PER_IMAGE
    return gflop / ((device.gflops or NOMINAL_GFLOPS) * EFFICIENCY) + kernels * device.kernel_launch_seconds


def _decoding_gflop_per_pixel(request: GenerationRequest, spec: ModelSpec) -> float:
    if 0 < spec.gflops_per_step < SMALL_MODEL_GFLOPS:
        return SMALL_MODEL_DECODING
    has_tiny_vae = "sdxs" in spec.name.lower()  # the only models of the catalog with an AutoencoderTiny
    return TINY_VAE_DECODING if has_tiny_vae or tiny_decoder(request.preset, spec) else VAE_DECODING
