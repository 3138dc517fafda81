"""Magic Canvas: text to image on your own computer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canvas.catalog import MODELS
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.studio import Studio

__all__ = ["MODELS", "GenerationRequest", "Studio"]


def __getattr__(name: str) -> Any:
    # Imported on first use: it imports much more than the other two.
    if name == "Studio":
        from canvas.studio import Studio

        return Studio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
