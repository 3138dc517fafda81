"""How long a picture will take here, before one like it was ever timed."""

from __future__ import annotations

from canvas.catalog import ModelSpec
from canvas.engine.acceleration import passes_per_step
from canvas.engine.device import Device
from canvas.engine.windows import count
from canvas.modes import MODES
from canvas.request import GenerationRequest

# A whole UNet reaches this share of the speed of the mix that `measure_speeds` runs.
EFFICIENCY = 0.7
# Gigaflop of one denoiser pass at the native size, where the catalogue does not say.
BY_TYPE = {"stable_diffusion": 803.0, "stable_diffusion_xl": 5980.0}


def seconds_per_step(request: GenerationRequest, spec: ModelSpec, device: Device) -> float | None:
    """Seconds of one step of a resolved request; None on a device that was not measured."""
    gigaflop = spec.gigaflops or BY_TYPE.get(spec.type)
    if device.gigaflops is None or gigaflop is None or not request.needs_model:
        return None
    assert request.width and request.height  # noqa: S101 - the request is resolved
    size = (request.width, request.height)
    share = request.width * request.height / spec.resolution**2
    if request.task == "upscale":  # by windows, which overlap
        width, height = (min(length, spec.resolution) for length in size)
        share = count(size, spec.resolution, 1) * width * height / spec.resolution**2
    guided = (request.guidance_scale or 0) > 1
    passes = passes_per_step(MODES[request.mode], request.steps[1], guided=guided)
    return gigaflop * share * passes / (device.gigaflops * EFFICIENCY)
