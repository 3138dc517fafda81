"""Limits on what one owner may submit, for public servers."""

from __future__ import annotations

from dataclasses import dataclass

from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, QueueFull
from canvas.request import GenerationRequest


@dataclass(frozen=True)
class Limits:
    """Unfinished jobs per owner, and pixels × steps × images per job; None is unlimited."""

    max_queued: int | None = None
    max_pixel_steps: int | None = None
    allow_downloads: bool = True

    def check_download(self, model_key: str) -> None:
        """Raise ContentBlocked if downloads are not allowed."""
        if not self.allow_downloads:
            raise ContentBlocked(
                LazyMessage(
                    "{model} is not completely installed on this server, and visitors cannot "
                    "download models. Choose another model or the preset Quality. The owner of "
                    "the server can run: python -m canvas download {model}",
                    model=model_key,
                )
            )

    def check(self, request: GenerationRequest, num_queued: int) -> None:
        """Raise QueueFull or InvalidInput if a request with defaults exceeds a limit."""
        if self.max_queued is not None and num_queued >= self.max_queued:
            raise QueueFull(
                LazyMessage(
                    "You have {queued} jobs in the queue; this server allows {allowed}. Wait "
                    "for one to finish, or remove one from the queue.",
                    queued=num_queued,
                    allowed=self.max_queued,
                )
            )
        if self.max_pixel_steps is None:
            return
        steps = request.num_inference_steps or 1
        pixels = (request.width or 0) * (request.height or 0) * request.num_images
        if pixels * steps > self.max_pixel_steps:
            size = f"{request.num_images} × {request.width} × {request.height}"
            max_steps = self.max_pixel_steps // pixels
            message = LazyMessage(
                "{size} pixels are too many for this server. Generate a smaller image or fewer images.", size=size
            )
            if max_steps:
                message = LazyMessage(
                    "Steps must be at most {allowed} on this server for {size} pixels (got {steps}).",
                    allowed=max_steps,
                    size=size,
                    steps=steps,
                )
            raise InvalidInput("num_inference_steps", steps, message=message)


# A public server is shared: 4 images of 512 × 512 pixels with 50 steps at a time are enough.
PUBLIC = Limits(max_queued=6, max_pixel_steps=512 * 512 * 50 * 4, allow_downloads=False)
PRIVATE = Limits()
