"""Procedural backgrounds: places with random variation, and plain colours."""

from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (214, 58, 56),
    "orange": (245, 150, 55),
    "yellow": (250, 214, 80),
    "green": (98, 180, 92),
    "blue": (72, 130, 220),
    "purple": (146, 94, 200),
    "pink": (246, 160, 196),
    "white": (246, 246, 244),
    "gray": (150, 153, 158),
    "black": (30, 31, 36),
}


def shade(colour: Colour, rng: Random, spread: int = 10) -> Colour:
    """The colour with a random change of brightness of up to `spread`."""
    change = rng.randint(-spread, spread)
    red, green, blue = (min(255, max(0, part + change)) for part in colour)
    return red, green, blue


def gradient(size: int, top: Colour, bottom: Colour) -> Image.Image:
    """A vertical gradient."""
    mask = Image.linear_gradient("L").resize((size, size))
    return Image.composite(Image.new("RGB", (size, size), bottom), Image.new("RGB", (size, size), top), mask)


def ellipse(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radii: tuple[float, float], fill: Colour) -> None:
    """Draw a filled ellipse around a centre."""
    (x, y), (rx, ry) = centre, radii
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def ground(image: Image.Image, rng: Random, colour: Colour, height: float) -> None:
    """Draw a curved ground that covers the lower `height` (0 to 1) of the image."""
    size = image.width
    top = size * (1 - height + rng.uniform(-0.02, 0.02))
    bend = size * rng.uniform(0.02, 0.06)
    draw = ImageDraw.Draw(image)
    draw.ellipse((-size * 0.5, top - bend, size * 1.5, top + size), fill=colour)
    draw.rectangle((0, top + bend * 2, size, size), fill=colour)


def clouds(image: Image.Image, rng: Random, colour: Colour, count: int) -> None:
    """Draw small clouds in the upper third."""
    size, draw = image.width, ImageDraw.Draw(image)
    for _ in range(count):
        x, y = rng.uniform(0.05, 0.95) * size, rng.uniform(0.06, 0.26) * size
        for dx, radius in ((-0.07, 0.035), (0.0, 0.055), (0.07, 0.04)):
            ellipse(draw, (x + dx * size, y), (radius * size, radius * size * 0.75), colour)


def dots(
    image: Image.Image,
    rng: Random,
    count: int,
    colour: Colour,
    radius: tuple[float, float],
    span: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Draw dots (stars, flakes, flowers) in a vertical span; radii in percent of the width."""
    size, draw = image.width, ImageDraw.Draw(image)
    for _ in range(count):
        r = rng.uniform(*radius) * size / 100
        x, y = rng.uniform(0, size), rng.uniform(*span) * size
        ellipse(draw, (x, y), (r, r), colour)


def snow(size: int, rng: Random) -> Image.Image:
    """White ground, pale blue sky, snowflakes."""
    image = gradient(size, (150, 190, 226), (205, 226, 242))
    ground(image, rng, shade((244, 248, 252), rng, 4), 0.34)
    dots(image, rng, rng.randint(10, 18), (255, 255, 255), (0.9, 1.8))
    return image


def beach(size: int, rng: Random) -> Image.Image:
    """Sand and a turquoise sea."""
    image = gradient(size, (120, 196, 244), (190, 230, 250))
    draw = ImageDraw.Draw(image)
    horizon = size * rng.uniform(0.44, 0.5)
    draw.rectangle((0, horizon, size, size), fill=shade((46, 160, 196), rng))
    if rng.random() < 0.5:
        ellipse(draw, (rng.choice((0.15, 0.85)) * size, 0.15 * size), (0.08 * size,) * 2, (255, 226, 110))
    ground(image, rng, shade((242, 214, 150), rng), 0.34)
    return image


def meadow(size: int, rng: Random) -> Image.Image:
    """Grass and flowers under a blue sky."""
    image = gradient(size, (110, 186, 246), (196, 230, 252))
    clouds(image, rng, (255, 255, 255), rng.randint(0, 2))
    ground(image, rng, shade((112, 190, 84), rng), 0.4)
    flower = rng.choice(((255, 240, 120), (250, 150, 190), (255, 255, 255)))
    dots(image, rng, rng.randint(8, 14), flower, (1.2, 1.8), (0.7, 0.98))
    return image


def desert(size: int, rng: Random) -> Image.Image:
    """Orange dunes under a hot sky."""
    image = gradient(size, (250, 190, 110), (253, 226, 170))
    ground(image, rng, shade((222, 160, 84), rng), 0.46)
    ground(image, rng, shade((236, 180, 100), rng), 0.32)
    return image


def night(size: int, rng: Random) -> Image.Image:
    """Dark blue sky, stars, often a moon, dark hills."""
    image = gradient(size, (16, 20, 58), (48, 54, 112))
    dots(image, rng, rng.randint(12, 20), (255, 250, 210), (0.7, 1.3), (0.0, 0.6))
    if rng.random() < 0.6:
        centre = (rng.choice((0.14, 0.86)) * size, 0.15 * size)
        ellipse(ImageDraw.Draw(image), centre, (0.08 * size, 0.08 * size), (250, 240, 190))
    ground(image, rng, shade((30, 44, 62), rng, 5), 0.28)
    return image


def sunset(size: int, rng: Random) -> Image.Image:
    """A red and yellow sky with a low sun."""
    image = gradient(size, (196, 76, 120), (255, 190, 90))
    centre = (rng.uniform(0.2, 0.8) * size, 0.6 * size)
    ellipse(ImageDraw.Draw(image), centre, (0.17 * size, 0.17 * size), (255, 232, 130))
    ground(image, rng, shade((96, 50, 84), rng, 5), 0.3)
    return image


def space(size: int, rng: Random) -> Image.Image:
    """Black sky, stars, often a planet."""
    image = gradient(size, (8, 8, 24), (26, 14, 46))
    dots(image, rng, rng.randint(16, 26), (255, 255, 255), (0.6, 1.2))
    if rng.random() < 0.6:
        colour = rng.choice(((200, 110, 80), (110, 150, 210), (190, 160, 110)))
        centre = (rng.choice((0.1, 0.9)) * size, rng.choice((0.12, 0.88)) * size)
        ellipse(ImageDraw.Draw(image), centre, (0.11 * size, 0.11 * size), colour)
    return image


def sea(size: int, rng: Random) -> Image.Image:
    """Underwater: blue gradient, bubbles, sand."""
    image = gradient(size, (60, 170, 214), (14, 74, 140))
    ground(image, rng, shade((190, 178, 128), rng), 0.14)
    dots(image, rng, rng.randint(7, 12), (170, 222, 244), (1.2, 2.4), (0.05, 0.85))
    return image


def city(size: int, rng: Random) -> Image.Image:
    """A row of houses with windows, a street."""
    image = gradient(size, (150, 200, 236), (214, 232, 242))
    draw = ImageDraw.Draw(image)
    x = -size * rng.uniform(0.0, 0.1)
    while x < size:
        width = size * rng.uniform(0.16, 0.24)
        top = size * rng.uniform(0.22, 0.5)
        draw.rectangle(
            (x, top, x + width, size),
            fill=rng.choice(((150, 120, 120), (120, 134, 160), (176, 150, 120), (130, 140, 140))),
        )
        pane = size * 0.04
        for row in range(3):
            for column in range(2):
                left = x + width * (0.2 + 0.4 * column)
                upper = top + size * (0.05 + 0.1 * row)
                draw.rectangle((left, upper, left + pane, upper + pane), fill=(250, 232, 160))
        x += width
    draw.rectangle((0, size * 0.78, size, size), fill=shade((96, 98, 104), rng))
    return image


def forest(size: int, rng: Random) -> Image.Image:
    """Dark trees behind a green ground."""
    image = gradient(size, (150, 200, 170), (96, 150, 110))
    draw = ImageDraw.Draw(image)
    x = size * rng.uniform(-0.05, 0.05)
    while x < size * 1.05:
        top, half = size * rng.uniform(0.05, 0.25), size * rng.uniform(0.09, 0.13)
        draw.rectangle((x - half * 0.2, size * 0.5, x + half * 0.2, size * 0.75), fill=(96, 66, 44))
        draw.polygon([(x, top), (x - half, size * 0.64), (x + half, size * 0.64)], fill=shade((36, 96, 60), rng, 14))
        x += size * rng.uniform(0.14, 0.2)
    ground(image, rng, shade((74, 128, 62), rng), 0.34)
    return image


def rain(size: int, rng: Random) -> Image.Image:
    """Grey with slanted drops and a wet ground."""
    image = gradient(size, (96, 108, 124), (150, 162, 174))
    clouds(image, rng, (78, 86, 100), 3)
    ground(image, rng, shade((88, 100, 108), rng), 0.26)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(20, 28)):
        x, y = rng.uniform(0, size), rng.uniform(0, size)
        draw.line((x, y, x - size * 0.025, y + size * 0.08), fill=(206, 226, 244), width=max(1, size // 90))
    return image


def mountains(size: int, rng: Random) -> Image.Image:
    """Grey peaks with white tops behind green hills."""
    image = gradient(size, (130, 190, 240), (214, 234, 248))
    draw = ImageDraw.Draw(image)
    for start in (0.0, 0.42, 0.78):
        x, top = (start + rng.uniform(0, 0.2)) * size, rng.uniform(0.1, 0.28) * size
        half, foot = 0.42 * size, 0.75 * size
        draw.polygon([(x, top), (x - half, foot), (x + half, foot)], fill=shade((122, 130, 148), rng))
        cap = 0.24
        draw.polygon(
            [(x, top), (x - half * cap, top + (foot - top) * cap), (x + half * cap, top + (foot - top) * cap)],
            fill=(248, 250, 252),
        )
    ground(image, rng, shade((104, 160, 88), rng), 0.32)
    return image


def room(size: int, rng: Random) -> Image.Image:
    """A wall with a window, a wooden floor."""
    wall = rng.choice(((238, 214, 186), (206, 222, 214), (226, 208, 226)))
    image = Image.new("RGB", (size, size), shade(wall, rng, 5))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, size * 0.72, size, size), fill=shade((170, 118, 74), rng))
    draw.rectangle((0, size * 0.70, size, size * 0.73), fill=(248, 244, 238))
    left, top = rng.choice((0.06, 0.68)) * size, 0.08 * size
    draw.rectangle((left, top, left + 0.26 * size, top + 0.3 * size), fill=(250, 248, 244))
    for column in (0, 1):
        x = left + (0.03 + 0.11 * column) * size
        draw.rectangle((x, top + 0.03 * size, x + 0.09 * size, top + 0.27 * size), fill=(150, 206, 244))
    return image


def sky(size: int, rng: Random) -> Image.Image:
    """Blue with white clouds above and below."""
    image = gradient(size, (84, 160, 236), (176, 220, 250))
    clouds(image, rng, (255, 255, 255), 2)
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = rng.uniform(0.0, 1.0) * size, rng.uniform(0.84, 0.98) * size
        ellipse(draw, (x, y), (0.17 * size, 0.07 * size), (255, 255, 255))
    return image


PLACES: dict[str, Callable[[int, Random], Image.Image]] = {
    "snow": snow,
    "beach": beach,
    "meadow": meadow,
    "desert": desert,
    "night": night,
    "sunset": sunset,
    "space": space,
    "sea": sea,
    "city": city,
    "forest": forest,
    "rain": rain,
    "mountains": mountains,
    "room": room,
    "sky": sky,
}
# Backgrounds without a ground: objects cast no shadow.
FLOATING = frozenset({"space", "sea", "sky", *COLOURS})
# Class index of every background.
BACKGROUNDS = (*PLACES, *COLOURS)


def render_background(name: str, size: int, rng: Random) -> Image.Image:
    """An RGB image of the place or plain colour; antialiased by 2x supersampling."""
    if name in COLOURS:
        return Image.new("RGB", (size, size), shade(COLOURS[name], rng, 8))
    return PLACES[name](2 * size, rng).reduce(2)
