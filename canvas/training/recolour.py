"""Other colours for drawings: hues turned around the gray axis."""

import math

import numpy as np
from PIL import Image

from canvas.training.backgrounds import COLOURS

HUE_STEP = 15  # degrees
MIN_CHROMA = 0.12  # on average, of a drawing that has a hue


def _turn(degrees: int) -> np.ndarray:
    """The matrix [3, 3] that turns RGB around the gray axis."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) / math.sqrt(3)
    mean = (1 - cosine) / 3
    rows = ((cosine + mean, mean - sine, mean + sine), (mean + sine, cosine + mean, mean - sine))
    return np.array((*rows, (mean - sine, mean + sine, cosine + mean)))


# The matrix for RGB by the word of prompts.
RECOLOURS = {f"hue {degrees}": _turn(degrees) for degrees in range(HUE_STEP, 360, HUE_STEP)}


def recolour(sprite: Image.Image, word: str) -> Image.Image:
    """An RGBA image in other colours; without a word in its own."""
    if not word:
        return sprite
    pixels = np.array(sprite)
    pixels[..., :3] = (pixels[..., :3] @ RECOLOURS[word].T).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA")


def dominant_hue(colours: np.ndarray) -> float | None:
    """The hue, in degrees, of most of the chroma of RGB values [n, 3] from 0 to 255; None if there is little."""
    red, green, blue = colours.T / 255
    chroma = red - (green + blue) / 2 + 1j * math.sqrt(3) / 2 * (green - blue)
    if np.abs(chroma).mean() < MIN_CHROMA:
        return None
    hues = np.angle(chroma, deg=True) % 360
    weights = np.histogram(hues, bins=36, range=(0, 360), weights=np.abs(chroma) ** 2)[0]
    peak = 10 * (weights + np.roll(weights, 1) + np.roll(weights, -1)).argmax() + 5
    is_near = np.abs((hues - peak + 180) % 360 - 180) <= 30
    return float(np.angle((chroma * np.abs(chroma))[is_near].sum(), deg=True) % 360)


def name_colour(colours: np.ndarray) -> str:
    """The name, of COLOURS, whose hue comes nearest to RGB values [n, 3] from 0 to 255; "" if they have none."""
    hue = dominant_hue(colours)
    if hue is None:
        return ""
    known = {name: dominant_hue(np.array([rgb])) for name, rgb in COLOURS.items()}
    return min((abs((other - hue + 180) % 360 - 180), name) for name, other in known.items() if other is not None)[1]
