"""How long a picture will take here, before one like it was ever timed."""

from __future__ import annotations

from canvas.catalog import ModelSpec
from canvas.engine.acceleration import passes_per_step
from canvas.engine.device import Device
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
    share = request.width * request.height / spec.resolution**2
    guided = (request.guidance_scale or 0) > 1
    # What is drawn window by window is drawn with whole passes.
    mode = MODES["quality" if request.task == "upscale" else request.mode]
    passes = passes_per_step(mode, request.steps[1], guided=guided)
    return gigaflop * share * passes / (device.gigaflops * EFFICIENCY)
