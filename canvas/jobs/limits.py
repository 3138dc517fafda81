"""Limits on what visitors of a public server may submit, and who shares a limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, QueueFull
from canvas.request import GenerationRequest


class Visitor(str):
    """The owner id of a visitor without an account, with the network of the client's address.

    Anybody can be many visitors, so limits and turns also count by `network`.
    """

    network: str

    def __new__(cls, owner: str, network: str = "") -> Visitor:
        """`network` as by `client_network`."""
        visitor = super().__new__(cls, owner)
        visitor.network = network
        return visitor


def account_of(owner: str) -> str:
    """Whose turn it is: the network of a visitor; a login, an API key or an account is its own."""
    return owner.network if isinstance(owner, Visitor) else owner


@dataclass(frozen=True)
class Limits:
    """Unfinished jobs per owner and per network of visitors, and pixels × steps × images per job.

    None is unlimited.
    """

    max_queued: int | None = None
    max_queued_per_network: int | None = None
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

    def check_queue(self, owner: str, owners: Iterable[str], num_new: int = 1) -> None:
        """Raise QueueFull if `num_new` more jobs exceed a limit; `owners` are those of all unfinished jobs."""
        owners = list(owners)
        queued = sum(1 for other in owners if other == owner)
        if self.max_queued is not None and queued + num_new > self.max_queued:
            raise QueueFull(
                LazyMessage(
                    "You have {queued} jobs in the queue; this server allows {allowed}. Wait "
                    "for one to finish, or remove one from the queue.",
                    queued=max(queued, self.max_queued),
                    allowed=self.max_queued,
                )
            )
        if self.max_queued_per_network is None or not isinstance(owner, Visitor):
            return
        if sum(1 for other in owners if account_of(other) == owner.network) + num_new > self.max_queued_per_network:
            raise QueueFull(
                LazyMessage(
                    "The visitors from your network have {allowed} jobs in the queue; this server allows no more. "
                    "Wait for one to finish.",
                    allowed=self.max_queued_per_network,
                )
            )

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidInput if a request with defaults exceeds a limit."""
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
# An address can be that of a family or an office: it may have the jobs of two visitors.
PUBLIC = Limits(max_queued=6, max_queued_per_network=12, max_pixel_steps=512 * 512 * 50 * 4, allow_downloads=False)
PRIVATE = Limits()
