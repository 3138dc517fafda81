"""Magic Canvas: text to image on the machine that you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canvas.catalog import MODELS
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.studio import Studio

__all__ = ["MODELS", "GenerationRequest", "Studio"]


def __getattr__(name: str) -> Any:
    # The studio is fetched on first use: words alone must not pay for the engine's imports.
    if name == "Studio":
        from canvas.studio import Studio

        return Studio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
