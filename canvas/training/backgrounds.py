"""Procedural backgrounds: places with random variation, and plain colours."""

from collections.abc import Callable, Iterator
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


def houses(
    size: int, rng: Random, widths: tuple[float, float], tops: tuple[float, float], start: float = 0.1
) -> Iterator[tuple[float, float, float]]:
    """Left, width and top of a row of houses across the image; the ranges are fractions of its size."""
    left = -size * rng.uniform(0.0, start)
    while left < size:
        width, top = size * rng.uniform(*widths), size * rng.uniform(*tops)
        yield left, width, top
        left += width


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
    for x, width, top in houses(size, rng, (0.16, 0.24), (0.22, 0.5)):
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


def kitchen(size: int, rng: Random) -> Image.Image:
    """Tiled wall, cupboards, a worktop."""
    image = Image.new("RGB", (size, size), shade((236, 240, 236), rng, 5))
    draw = ImageDraw.Draw(image)
    tile = size / rng.choice((9, 10, 11))
    line = shade((206, 216, 214), rng, 6)
    for index in range(12):
        draw.line((index * tile, 0, index * tile, size * 0.7), fill=line, width=max(1, size // 128))
        draw.line((0, index * tile, size, index * tile), fill=line, width=max(1, size // 128))
    cupboard = shade(rng.choice(((92, 150, 158), (206, 140, 100), (120, 160, 116))), rng)
    dark = shade((70, 80, 90), rng, 4)
    for left in (0.02, 0.35, 0.68):
        draw.rectangle((left * size, 0, (left + 0.3) * size, size * 0.17), fill=cupboard)
        draw.rectangle(((left + 0.13) * size, size * 0.13, (left + 0.17) * size, size * 0.145), fill=dark)
    draw.rectangle((0, size * 0.7, size, size * 0.76), fill=shade((198, 158, 112), rng))
    draw.rectangle((0, size * 0.76, size, size), fill=cupboard)
    for left in (0.33, 0.66):
        draw.line((left * size, size * 0.76, left * size, size), fill=dark, width=max(1, size // 100))
    return image


def bedroom(size: int, rng: Random) -> Image.Image:
    """A pastel wall with a picture, a bed with a blanket."""
    wall = rng.choice(((214, 206, 234), (204, 222, 238), (240, 216, 218)))
    image = Image.new("RGB", (size, size), shade(wall, rng, 5))
    draw = ImageDraw.Draw(image)
    left = rng.choice((0.1, 0.66)) * size
    draw.rectangle((left, 0.08 * size, left + 0.24 * size, 0.26 * size), fill=(250, 248, 240))
    inner = (left + 0.02 * size, 0.1 * size, left + 0.22 * size, 0.24 * size)
    draw.rectangle(inner, fill=shade((150, 190, 170), rng, 20))
    draw.rounded_rectangle((0.02 * size, 0.46 * size, 0.98 * size, 0.8 * size), 0.05 * size, fill=(150, 104, 74))
    for start in (0.12, 0.56):
        box = (start * size, 0.52 * size, (start + 0.32) * size, 0.72 * size)
        draw.rounded_rectangle(box, 0.05 * size, fill=(250, 248, 246))
    blanket = shade(rng.choice(((110, 140, 200), (200, 120, 140), (120, 170, 140))), rng)
    draw.rounded_rectangle((0, 0.68 * size, size, 1.1 * size), 0.06 * size, fill=blanket)
    return image


def library(size: int, rng: Random) -> Image.Image:
    """Shelves full of books above a wooden floor."""
    image = Image.new("RGB", (size, size), shade((116, 76, 50), rng, 6))
    draw = ImageDraw.Draw(image)
    books = ((170, 60, 56), (60, 100, 150), (80, 130, 84), (214, 170, 84), (120, 80, 140), (226, 214, 190))
    for row in range(4):
        x, bottom = 0.02 * size, (0.19 + 0.19 * row) * size
        while x < 0.97 * size:
            width, height = rng.uniform(0.03, 0.06) * size, rng.uniform(0.1, 0.145) * size
            draw.rectangle((x, bottom - height, x + width * 0.9, bottom), fill=shade(rng.choice(books), rng, 8))
            x += width
        draw.rectangle((0, bottom, size, bottom + 0.02 * size), fill=shade((150, 104, 68), rng, 4))
    draw.rectangle((0, 0.8 * size, size, size), fill=shade((176, 126, 82), rng))
    return image


def stage(size: int, rng: Random) -> Image.Image:
    """Red curtains, a spotlight, a wooden floor."""
    image = gradient(size, (54, 22, 40), (96, 40, 56))
    draw = ImageDraw.Draw(image)
    beam = shade((150, 96, 96), rng, 6)
    draw.polygon([(0.46 * size, 0), (0.54 * size, 0), (0.86 * size, 0.8 * size), (0.14 * size, 0.8 * size)], fill=beam)
    draw.rectangle((0, 0.76 * size, size, size), fill=shade((168, 116, 74), rng))
    ellipse(draw, (0.5 * size, 0.86 * size), (0.38 * size, 0.09 * size), (226, 186, 132))
    for side in (0, 1):
        for fold in range(3):
            x = (0.03 + 0.06 * fold) * size
            x = size - x if side else x
            ellipse(draw, (x, 0.36 * size), (0.05 * size, 0.5 * size), shade((178, 34, 44), rng, 14))
    draw.rectangle((0, 0, size, 0.07 * size), fill=shade((150, 26, 38), rng, 6))
    return image


def street(size: int, rng: Random) -> Image.Image:
    """A street at night: dark houses with lit windows, a lamp."""
    image = gradient(size, (22, 26, 62), (58, 54, 100))
    draw = ImageDraw.Draw(image)
    for x, width, top in houses(size, rng, (0.18, 0.26), (0.16, 0.4)):
        draw.rectangle((x, top, x + width, size), fill=shade((42, 44, 72), rng, 8))
        for row in range(4):
            for column in range(2):
                left, upper = x + width * (0.2 + 0.4 * column), top + size * (0.05 + 0.11 * row)
                lit = (252, 214, 120) if rng.random() < 0.6 else (64, 66, 96)
                draw.rectangle((left, upper, left + size * 0.045, upper + size * 0.055), fill=lit)
    draw.rectangle((0, size * 0.78, size, size), fill=shade((58, 58, 74), rng, 5))
    post = rng.choice((0.1, 0.9)) * size
    draw.line((post, 0.3 * size, post, 0.82 * size), fill=(24, 24, 34), width=max(2, size // 50))
    ellipse(draw, (post, 0.28 * size), (0.05 * size, 0.05 * size), (255, 236, 170))
    return image


def farm(size: int, rng: Random) -> Image.Image:
    """A red barn, a fence, fields."""
    image = gradient(size, (126, 196, 244), (208, 236, 250))
    clouds(image, rng, (255, 255, 255), rng.randint(0, 2))
    ground(image, rng, shade((196, 190, 92), rng), 0.46)
    draw = ImageDraw.Draw(image)
    x = rng.choice((0.02, 0.66)) * size
    barn = shade((188, 62, 52), rng)
    draw.rectangle((x, 0.32 * size, x + 0.32 * size, 0.62 * size), fill=barn)
    roof = [(x - 0.03 * size, 0.32 * size), (x + 0.16 * size, 0.16 * size), (x + 0.35 * size, 0.32 * size)]
    draw.polygon(roof, fill=shade((110, 70, 62), rng, 6))
    draw.rectangle((x + 0.1 * size, 0.42 * size, x + 0.22 * size, 0.62 * size), fill=(246, 240, 230))
    draw.rectangle((x + 0.115 * size, 0.435 * size, x + 0.205 * size, 0.62 * size), fill=barn)
    ground(image, rng, shade((124, 184, 84), rng), 0.36)
    for row in (0.66, 0.71):
        draw.rectangle((0, row * size, size, (row + 0.018) * size), fill=(244, 240, 232))
    for post in range(7):
        left = (0.03 + 0.155 * post) * size
        draw.rectangle((left, 0.62 * size, left + 0.025 * size, 0.77 * size), fill=(244, 240, 232))
    return image


def lake(size: int, rng: Random) -> Image.Image:
    """Hills behind calm water, reeds at the shore."""
    image = gradient(size, (150, 206, 246), (222, 240, 250))
    clouds(image, rng, (255, 255, 255), rng.randint(0, 2))
    draw = ImageDraw.Draw(image)
    for start in (0.1, 0.5, 0.9):
        centre = ((start + rng.uniform(-0.1, 0.1)) * size, 0.5 * size)
        ellipse(draw, centre, (0.36 * size, rng.uniform(0.12, 0.2) * size), shade((92, 150, 104), rng, 10))
    draw.rectangle((0, 0.48 * size, size, size), fill=shade((74, 146, 196), rng))
    for _ in range(rng.randint(6, 10)):
        x, y = rng.uniform(0, 1) * size, rng.uniform(0.52, 0.74) * size
        ellipse(draw, (x, y), (rng.uniform(0.05, 0.12) * size, 0.008 * size), (150, 204, 232))
    ground(image, rng, shade((126, 176, 92), rng), 0.24)
    edge = rng.choice((0.02, 0.8)) * size
    for reed in range(6):
        x = edge + 0.03 * reed * size
        draw.line((x, 0.82 * size, x, (0.6 + 0.04 * (reed % 3)) * size), fill=(70, 120, 60), width=max(2, size // 80))
    return image


def cave(size: int, rng: Random) -> Image.Image:
    """Dark rock with a bright opening and stalactites."""
    image = gradient(size, (58, 50, 62), (92, 80, 84))
    draw = ImageDraw.Draw(image)
    x = rng.uniform(0.3, 0.7) * size
    for radius, colour in ((0.34, (120, 110, 120)), (0.27, (170, 190, 206)), (0.2, (214, 234, 244))):
        ellipse(draw, (x, 0.4 * size), (radius * size, radius * size * 1.05), colour)
    left = -0.02 * size
    while left < size:
        width, length = rng.uniform(0.06, 0.12) * size, rng.uniform(0.08, 0.26) * size
        draw.polygon([(left, 0), (left + width, 0), (left + width / 2, length)], fill=shade((48, 42, 54), rng, 6))
        left += width
    ground(image, rng, shade((84, 74, 80), rng, 6), 0.34)
    return image


def hall(size: int, rng: Random) -> Image.Image:
    """A castle hall: stone walls, arched windows, banners, a carpet."""
    image = Image.new("RGB", (size, size), shade((168, 162, 156), rng, 6))
    draw = ImageDraw.Draw(image)
    line = (146, 140, 136)
    for row in range(9):
        y = row * 0.085 * size
        draw.line((0, y, size, y), fill=line, width=max(1, size // 128))
        for column in range(6):
            x = (column + 0.5 * (row % 2)) * 0.2 * size
            draw.line((x, y, x, y + 0.085 * size), fill=line, width=max(1, size // 128))
    light = shade((196, 226, 244), rng, 6)
    for centre in (0.16, 0.5, 0.84):
        draw.rectangle(((centre - 0.07) * size, 0.18 * size, (centre + 0.07) * size, 0.42 * size), fill=light)
        ellipse(draw, (centre * size, 0.18 * size), (0.07 * size, 0.08 * size), light)
    banner = shade(rng.choice(((178, 40, 50), (60, 80, 160), (70, 120, 80))), rng, 8)
    for centre in (0.33, 0.67):
        draw.rectangle(((centre - 0.05) * size, 0.08 * size, (centre + 0.05) * size, 0.44 * size), fill=banner)
        tip = [
            ((centre - 0.05) * size, 0.44 * size),
            ((centre + 0.05) * size, 0.44 * size),
            (centre * size, 0.5 * size),
        ]
        draw.polygon(tip, fill=banner)
    draw.rectangle((0, 0.72 * size, size, size), fill=shade((132, 116, 108), rng, 6))
    carpet = [(0.36 * size, 0.72 * size), (0.64 * size, 0.72 * size), (0.86 * size, size), (0.14 * size, size)]
    draw.polygon(carpet, fill=shade((170, 44, 50), rng, 8))
    return image


def rooftop(size: int, rng: Random) -> Image.Image:
    """A flat roof with a railing above a skyline in the evening."""
    top, bottom = rng.choice((((250, 176, 130), (255, 226, 180)), ((130, 190, 240), (220, 236, 246))))
    image = gradient(size, top, bottom)
    draw = ImageDraw.Draw(image)
    for x, width, height in houses(size, rng, (0.07, 0.14), (0.26, 0.56), start=0.05):
        draw.rectangle((x, height, x + width, size), fill=shade((132, 136, 166), rng, 14))
    draw.rectangle((0, 0.74 * size, size, size), fill=shade((186, 160, 146), rng))
    draw.rectangle((0, 0.58 * size, size, 0.6 * size), fill=(84, 84, 96))
    for post in range(11):
        left = (0.01 + 0.1 * post) * size
        draw.line((left, 0.58 * size, left, 0.76 * size), fill=(84, 84, 96), width=max(1, size // 90))
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
    "kitchen": kitchen,
    "bedroom": bedroom,
    "library": library,
    "stage": stage,
    "street": street,
    "farm": farm,
    "lake": lake,
    "cave": cave,
    "hall": hall,
    "rooftop": rooftop,
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
