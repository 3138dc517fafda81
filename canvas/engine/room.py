"""Whether a picture fits into the memory that is free, and which one would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canvas.engine.pipelines import free_device_memory
from canvas.errors import OutOfMemory, Said

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.engine.device import Device
    from canvas.request import GenerationRequest

# What decoding a picture takes at its peak, a pixel and byte of a number.
WORKING_BYTES = 1100


def check_room(request: GenerationRequest, spec: ModelSpec, device: Device) -> None:
    """Raise OutOfMemory for a picture that the memory of this machine cannot hold.

    Of the CPU only: there the system ends a program that takes too much. A GPU refuses by
    itself, and part of what it calls used is free to us.
    """
    if device.name != "cpu" or _needed(request.width, request.height, device) <= (
        free := free_device_memory(device)
    ):
        return
    raise OutOfMemory(
        Said(
            "{size} needs {needed} of memory, {free} are free. {instead}",
            size=f"{request.width}x{request.height}",
            needed=f"{_needed(request.width, request.height, device) / 1e9:.2f} GB",
            free=f"{free / 1e9:.2f} GB",
            instead=what_would_fit(request, spec, device),
        )
    )


def what_would_fit(request: GenerationRequest, spec: ModelSpec, device: Device) -> Said:
    """The largest smaller size whose decoding fits into the memory that is free now."""
    assert request.width and request.height  # noqa: S101 - the request is resolved
    free = free_device_memory(device)
    longer = max(request.width, request.height)
    for side in range(longer - spec.size_step, spec.min_size - 1, -spec.size_step):
        width, height = (
            max(64, n * side // longer // 8 * 8) for n in (request.width, request.height)
        )
        if _needed(width, height, device) <= free:
            return Said("{size} would fit.", size=f"{width}x{height}")
    text = "Only {free} are free: close other programs or pick a smaller model."
    return Said(text, free=f"{free / 1e9:.2f} GB")


def _needed(width: int | None, height: int | None, device: Device) -> int:
    return (width or 0) * (height or 0) * WORKING_BYTES * int(device.torch_dtype.itemsize)
