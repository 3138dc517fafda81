"""How long a request will take: from pictures like it, pictures unlike it, and the machine."""

from __future__ import annotations

from dataclasses import replace

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.estimate import seconds_of_picture
from canvas.history.store import Store
from canvas.modes import MODES
from canvas.request import GenerationRequest


def expected_seconds(
    request: GenerationRequest, spec: ModelSpec, device: Device, store: Store
) -> float | None:
    """Seconds of all pictures of a request once its model is loaded; None when unknown.

    Learned from pictures of the same mode. Before there are any the start-up measurement
    tells, corrected by how far it is off for a mode that was timed here.
    """
    request = request.resolve(spec)
    timed = _timed(request, device, store)
    if timed is not None:
        return timed * request.num_images
    thought = seconds_of_picture(request, spec, device)
    if thought is None:
        return None
    for mode in MODES:
        other = replace(
            request, mode=mode, num_inference_steps=None, guidance_scale=None, scheduler=None
        ).resolve(spec)
        there = _timed(other, device, store) if mode != request.mode else None
        if there is not None:
            thought *= there / (seconds_of_picture(other, spec, device) or there)
            break
    return thought * request.num_images


def _timed(request: GenerationRequest, device: Device, store: Store) -> float | None:
    """Seconds of one such picture by the timings of its mode; None before there are any."""
    per_step = store.seconds_per_step(request, device.name, device.dtype)
    return None if per_step is None else per_step * request.steps[1]
