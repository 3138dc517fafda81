"""What one visitor of a public server may ask for at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, QueueFull
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Limits:
    """`waiting` jobs at a time, and `work` in pixels × steps × pictures a job; None: no limit.

    `downloads`: whether models may be fetched.
    """

    max_queued: int | None = None
    max_pixel_steps: int | None = None
    allow_downloads: bool = True

    def check_download(self, model_key: str) -> None:
        """Raise Blocked where visitors may not fill the disk."""
        if not self.allow_downloads:
            raise ContentBlocked(
                LazyMessage(
                    "Not all that {model} needs is on this server, and visitors may not fetch it. "
                    "Whoever runs it can: python -m canvas download {model}. Pick another model "
                    "or the mode Quality.",
                    model=model_key,
                )
            )

    def check(self, request: GenerationRequest, waiting: int) -> None:
        """Raise QueueFull or InvalidInput when a resolved request would go beyond."""
        if self.max_queued is not None and waiting >= self.max_queued:
            raise QueueFull(
                LazyMessage(
                    "You have {waiting} pictures waiting, and {allowed} are allowed at a time "
                    "here. Wait for one to finish, or take one out of the queue.",
                    waiting=waiting,
                    allowed=self.max_queued,
                )
            )
        if self.max_pixel_steps is None:
            return
        steps = request.num_inference_steps or 1
        pixels = (request.width or 0) * (request.height or 0)
        if pixels * steps * request.num_images > self.max_pixel_steps:
            fitting = self.max_pixel_steps // (pixels * request.num_images)
            wanted = f"{request.num_images} × {request.width} × {request.height}"
            allowed = LazyMessage(
                "a smaller picture or fewer of them here: {wanted} pixels are too much while "
                "others wait",
                wanted=wanted,
            )
            if fitting:
                allowed = LazyMessage(
                    "at most {fitting} here for {wanted} pixels, as others wait, too",
                    fitting=fitting,
                    wanted=wanted,
                )
            raise InvalidInput("num_inference_steps", steps, allowed)


# A public server is shared by strangers: 512 × 512 at 50 steps, four at a time, is plenty.
PUBLIC = Limits(max_queued=6, max_pixel_steps=512 * 512 * 50 * 4, allow_downloads=False)
PRIVATE = Limits()
