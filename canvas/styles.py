"""Prompt styles by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Style:
    """Words appended to the prompt and to the negative prompt."""

    words: str = ""
    negative_words: str = ""


STYLES = MappingProxyType(
    {
        "none": Style(),
        "photorealistic": Style(
            "photorealistic, highly detailed, natural light, sharp focus", "drawing, painting, cartoon, blurry"
        ),
        "artistic": Style("oil painting, expressive brush strokes, rich colours", "photo, blurry"),
        "cartoon": Style("cartoon, bold outlines, bright flat colours", "photo, realistic, blurry"),
        "anime": Style("anime, cel shading, clean lines, vivid colours", "photo, realistic"),
        "digital art": Style("digital art, concept art, detailed, crisp", "blurry, low quality"),
        "fantasy": Style("fantasy art, magical, epic, glowing light", "modern, blurry"),
        "sci-fi": Style("science fiction, futuristic, high tech, neon light", "medieval, blurry"),
    }
)
