"""Procedural backgrounds: places with random variation, and plain colours."""

from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Range = tuple[float, float]
WHITE = (255, 255, 255)
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


class ScaledDraw:
    """`ImageDraw` for a square image in coordinates from 0 to 1, with random numbers."""

    def __init__(self, size: int, rng: Random) -> None:
        self.size, self.rng = size, rng
        self.image = Image.new("RGB", (size, size))

    def _scaled(self, *numbers: float) -> list[float]:
        return [number * self.size for number in numbers]

    @property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def shade(self, colour: Colour, spread: int = 10) -> Colour:
        """The colour with a random change of brightness of up to `spread`."""
        change = self.rng.randint(-spread, spread)
        red, green, blue = (min(255, max(0, part + change)) for part in colour)
        return red, green, blue

    def fill(self, colour: Colour) -> None:
        """Cover all of the image."""
        self.image.paste(colour, (0, 0, self.size, self.size))

    def gradient(self, top: Colour, bottom: Colour) -> None:
        """Cover all of the image with a vertical gradient."""
        self.fill(top)
        self.image.paste(bottom, mask=Image.linear_gradient("L").resize(self.image.size))

    def rectangle(self, x1: float, y1: float, x2: float, y2: float, colour: Colour, radius: float = 0) -> None:
        """A filled rectangle, with round corners if there is a radius."""
        box = self._scaled(x1, y1, x2, y2)
        if radius:
            self._draw.rounded_rectangle(box, radius * self.size, fill=colour)
        else:
            self._draw.rectangle(box, fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A filled ellipse around a centre."""
        self._draw.ellipse(self._scaled(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def polygon(self, colour: Colour, *points: tuple[float, float]) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=colour)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: Colour, width: float = 1 / 128) -> None:
        """A line."""
        self._draw.line(self._scaled(x1, y1, x2, y2), fill=colour, width=max(1, int(width * self.size)))

    def ground(self, colour: Colour, height: float) -> None:
        """A curved ground that covers the lower `height` (0 to 1) of the image."""
        top, bend = 1 - height + self.rng.uniform(-0.02, 0.02), self.rng.uniform(0.02, 0.06)
        self._draw.ellipse(self._scaled(-0.5, top - bend, 1.5, top + 1), fill=colour)
        self.rectangle(0, top + bend * 2, 1, 1, colour)

    def clouds(self, count: int, colour: Colour = WHITE) -> None:
        """Small clouds in the upper third."""
        for _ in range(count):
            x, y = self.rng.uniform(0.05, 0.95), self.rng.uniform(0.06, 0.26)
            for dx, radius in ((-0.07, 0.035), (0.0, 0.055), (0.07, 0.04)):
                self.ellipse(x + dx, y, radius, radius * 0.75, colour)

    def dots(self, count: int, colour: Colour, radius: Range, span: Range = (0.0, 1.0)) -> None:
        """Dots (stars, flakes, flowers) in a vertical span; radii in percent of the width."""
        for _ in range(count):
            r = self.rng.uniform(*radius) / 100
            self.ellipse(self.rng.uniform(0, 1), self.rng.uniform(*span), r, r, colour)

    def row(self, widths: Range, tops: Range, start: float = 0.1) -> Iterator[tuple[float, float, float]]:
        """Left, width and top of each house of a row across the image."""
        left = -self.rng.uniform(0.0, start)
        while left < 1:
            width, top = self.rng.uniform(*widths), self.rng.uniform(*tops)
            yield left, width, top
            left += width


def snow(draw: ScaledDraw) -> None:
    """White ground, pale blue sky, snowflakes."""
    draw.gradient((150, 190, 226), (205, 226, 242))
    draw.ground(draw.shade((244, 248, 252), 4), 0.34)
    draw.dots(draw.rng.randint(10, 18), WHITE, (0.9, 1.8))


def beach(draw: ScaledDraw) -> None:
    """Sand and a turquoise sea."""
    draw.gradient((120, 196, 244), (190, 230, 250))
    draw.rectangle(0, draw.rng.uniform(0.44, 0.5), 1, 1, draw.shade((46, 160, 196)))
    if draw.rng.random() < 0.5:
        draw.ellipse(draw.rng.choice((0.15, 0.85)), 0.15, 0.08, 0.08, (255, 226, 110))
    draw.ground(draw.shade((242, 214, 150)), 0.34)


def meadow(draw: ScaledDraw) -> None:
    """Grass and flowers under a blue sky."""
    draw.gradient((110, 186, 246), (196, 230, 252))
    draw.clouds(draw.rng.randint(0, 2))
    draw.ground(draw.shade((112, 190, 84)), 0.4)
    flower = draw.rng.choice(((255, 240, 120), (250, 150, 190), WHITE))
    draw.dots(draw.rng.randint(8, 14), flower, (1.2, 1.8), (0.7, 0.98))


def desert(draw: ScaledDraw) -> None:
    """Orange dunes under a hot sky."""
    draw.gradient((250, 190, 110), (253, 226, 170))
    draw.ground(draw.shade((222, 160, 84)), 0.46)
    draw.ground(draw.shade((236, 180, 100)), 0.32)


def night(draw: ScaledDraw) -> None:
    """Dark blue sky, stars, often a moon, dark hills."""
    draw.gradient((16, 20, 58), (48, 54, 112))
    draw.dots(draw.rng.randint(12, 20), (255, 250, 210), (0.7, 1.3), (0.0, 0.6))
    if draw.rng.random() < 0.6:
        draw.ellipse(draw.rng.choice((0.14, 0.86)), 0.15, 0.08, 0.08, (250, 240, 190))
    draw.ground(draw.shade((30, 44, 62), 5), 0.28)


def sunset(draw: ScaledDraw) -> None:
    """A red and yellow sky with a low sun."""
    draw.gradient((196, 76, 120), (255, 190, 90))
    draw.ellipse(draw.rng.uniform(0.2, 0.8), 0.6, 0.17, 0.17, (255, 232, 130))
    draw.ground(draw.shade((96, 50, 84), 5), 0.3)


def space(draw: ScaledDraw) -> None:
    """Black sky, stars, often a planet."""
    draw.gradient((8, 8, 24), (26, 14, 46))
    draw.dots(draw.rng.randint(16, 26), WHITE, (0.6, 1.2))
    if draw.rng.random() < 0.6:
        colour = draw.rng.choice(((200, 110, 80), (110, 150, 210), (190, 160, 110)))
        draw.ellipse(draw.rng.choice((0.1, 0.9)), draw.rng.choice((0.12, 0.88)), 0.11, 0.11, colour)


def sea(draw: ScaledDraw) -> None:
    """Underwater: blue gradient, bubbles, sand."""
    draw.gradient((60, 170, 214), (14, 74, 140))
    draw.ground(draw.shade((190, 178, 128)), 0.14)
    draw.dots(draw.rng.randint(7, 12), (170, 222, 244), (1.2, 2.4), (0.05, 0.85))


def city(draw: ScaledDraw) -> None:
    """A row of houses with windows, a street."""
    draw.gradient((150, 200, 236), (214, 232, 242))
    for x, width, top in draw.row((0.16, 0.24), (0.22, 0.5)):
        wall = draw.rng.choice(((150, 120, 120), (120, 134, 160), (176, 150, 120), (130, 140, 140)))
        draw.rectangle(x, top, x + width, 1, wall)
        for row in range(3):
            for column in range(2):
                left, upper = x + width * (0.2 + 0.4 * column), top + 0.05 + 0.1 * row
                draw.rectangle(left, upper, left + 0.04, upper + 0.04, (250, 232, 160))
    draw.rectangle(0, 0.78, 1, 1, draw.shade((96, 98, 104)))


def forest(draw: ScaledDraw) -> None:
    """Dark trees behind a green ground."""
    draw.gradient((150, 200, 170), (96, 150, 110))
    x = draw.rng.uniform(-0.05, 0.05)
    while x < 1.05:
        top, half = draw.rng.uniform(0.05, 0.25), draw.rng.uniform(0.09, 0.13)
        draw.rectangle(x - half * 0.2, 0.5, x + half * 0.2, 0.75, (96, 66, 44))
        draw.polygon(draw.shade((36, 96, 60), 14), (x, top), (x - half, 0.64), (x + half, 0.64))
        x += draw.rng.uniform(0.14, 0.2)
    draw.ground(draw.shade((74, 128, 62)), 0.34)


def rain(draw: ScaledDraw) -> None:
    """Grey with slanted drops and a wet ground."""
    draw.gradient((96, 108, 124), (150, 162, 174))
    draw.clouds(3, (78, 86, 100))
    draw.ground(draw.shade((88, 100, 108)), 0.26)
    for _ in range(draw.rng.randint(20, 28)):
        x, y = draw.rng.uniform(0, 1), draw.rng.uniform(0, 1)
        draw.line(x, y, x - 0.025, y + 0.08, (206, 226, 244), 1 / 90)


def mountains(draw: ScaledDraw) -> None:
    """Grey peaks with white tops behind green hills."""
    draw.gradient((130, 190, 240), (214, 234, 248))
    for start in (0.0, 0.42, 0.78):
        x, top = start + draw.rng.uniform(0, 0.2), draw.rng.uniform(0.1, 0.28)
        half, foot, cap = 0.42, 0.75, 0.24
        draw.polygon(draw.shade((122, 130, 148)), (x, top), (x - half, foot), (x + half, foot))
        edge = top + (foot - top) * cap
        draw.polygon((248, 250, 252), (x, top), (x - half * cap, edge), (x + half * cap, edge))
    draw.ground(draw.shade((104, 160, 88)), 0.32)


def room(draw: ScaledDraw) -> None:
    """A wall with a window, a wooden floor."""
    draw.fill(draw.shade(draw.rng.choice(((238, 214, 186), (206, 222, 214), (226, 208, 226))), 5))
    draw.rectangle(0, 0.72, 1, 1, draw.shade((170, 118, 74)))
    draw.rectangle(0, 0.70, 1, 0.73, (248, 244, 238))
    left = draw.rng.choice((0.06, 0.68))
    draw.rectangle(left, 0.08, left + 0.26, 0.38, (250, 248, 244))
    for x in (left + 0.03, left + 0.14):
        draw.rectangle(x, 0.11, x + 0.09, 0.35, (150, 206, 244))


def sky(draw: ScaledDraw) -> None:
    """Blue with white clouds above and below."""
    draw.gradient((84, 160, 236), (176, 220, 250))
    draw.clouds(2)
    for _ in range(3):
        draw.ellipse(draw.rng.uniform(0.0, 1.0), draw.rng.uniform(0.84, 0.98), 0.17, 0.07, WHITE)


def kitchen(draw: ScaledDraw) -> None:
    """Tiled wall, cupboards, a worktop."""
    draw.fill(draw.shade((236, 240, 236), 5))
    tile, joint = 1 / draw.rng.choice((9, 10, 11)), draw.shade((206, 216, 214), 6)
    for index in range(12):
        draw.line(index * tile, 0, index * tile, 0.7, joint)
        draw.line(0, index * tile, 1, index * tile, joint)
    cupboard = draw.shade(draw.rng.choice(((92, 150, 158), (206, 140, 100), (120, 160, 116))))
    dark = draw.shade((70, 80, 90), 4)
    for left in (0.02, 0.35, 0.68):
        draw.rectangle(left, 0, left + 0.3, 0.17, cupboard)
        draw.rectangle(left + 0.13, 0.13, left + 0.17, 0.145, dark)
    draw.rectangle(0, 0.7, 1, 0.76, draw.shade((198, 158, 112)))
    draw.rectangle(0, 0.76, 1, 1, cupboard)
    for left in (0.33, 0.66):
        draw.line(left, 0.76, left, 1, dark, 1 / 100)


def bedroom(draw: ScaledDraw) -> None:
    """A pastel wall with a picture, a bed with a blanket."""
    draw.fill(draw.shade(draw.rng.choice(((214, 206, 234), (204, 222, 238), (240, 216, 218))), 5))
    left = draw.rng.choice((0.1, 0.66))
    draw.rectangle(left, 0.08, left + 0.24, 0.26, (250, 248, 240))
    draw.rectangle(left + 0.02, 0.1, left + 0.22, 0.24, draw.shade((150, 190, 170), 20))
    draw.rectangle(0.02, 0.46, 0.98, 0.8, (150, 104, 74), radius=0.05)
    for left in (0.12, 0.56):
        draw.rectangle(left, 0.52, left + 0.32, 0.72, (250, 248, 246), radius=0.05)
    blanket = draw.shade(draw.rng.choice(((110, 140, 200), (200, 120, 140), (120, 170, 140))))
    draw.rectangle(0, 0.68, 1, 1.1, blanket, radius=0.06)


def library(draw: ScaledDraw) -> None:
    """Shelves full of books above a wooden floor."""
    draw.fill(draw.shade((116, 76, 50), 6))
    books = ((170, 60, 56), (60, 100, 150), (80, 130, 84), (214, 170, 84), (120, 80, 140), (226, 214, 190))
    for row in range(4):
        x, bottom = 0.02, 0.19 + 0.19 * row
        while x < 0.97:
            width, height = draw.rng.uniform(0.03, 0.06), draw.rng.uniform(0.1, 0.145)
            draw.rectangle(x, bottom - height, x + width * 0.9, bottom, draw.shade(draw.rng.choice(books), 8))
            x += width
        draw.rectangle(0, bottom, 1, bottom + 0.02, draw.shade((150, 104, 68), 4))
    draw.rectangle(0, 0.8, 1, 1, draw.shade((176, 126, 82)))


def stage(draw: ScaledDraw) -> None:
    """Red curtains, a spotlight, a wooden floor."""
    draw.gradient((54, 22, 40), (96, 40, 56))
    draw.polygon(draw.shade((150, 96, 96), 6), (0.46, 0), (0.54, 0), (0.86, 0.8), (0.14, 0.8))
    draw.rectangle(0, 0.76, 1, 1, draw.shade((168, 116, 74)))
    draw.ellipse(0.5, 0.86, 0.38, 0.09, (226, 186, 132))
    for x in (0.03, 0.09, 0.15, 0.97, 0.91, 0.85):
        draw.ellipse(x, 0.36, 0.05, 0.5, draw.shade((178, 34, 44), 14))
    draw.rectangle(0, 0, 1, 0.07, draw.shade((150, 26, 38), 6))


def street(draw: ScaledDraw) -> None:
    """A street at night: dark houses with lit windows, a lamp."""
    draw.gradient((22, 26, 62), (58, 54, 100))
    for x, width, top in draw.row((0.18, 0.26), (0.16, 0.4)):
        draw.rectangle(x, top, x + width, 1, draw.shade((42, 44, 72), 8))
        for row in range(4):
            for column in range(2):
                left, upper = x + width * (0.2 + 0.4 * column), top + 0.05 + 0.11 * row
                light = (252, 214, 120) if draw.rng.random() < 0.6 else (64, 66, 96)
                draw.rectangle(left, upper, left + 0.045, upper + 0.055, light)
    draw.rectangle(0, 0.78, 1, 1, draw.shade((58, 58, 74), 5))
    post = draw.rng.choice((0.1, 0.9))
    draw.line(post, 0.3, post, 0.82, (24, 24, 34), 1 / 50)
    draw.ellipse(post, 0.28, 0.05, 0.05, (255, 236, 170))


def farm(draw: ScaledDraw) -> None:
    """A red barn, a fence, fields."""
    draw.gradient((126, 196, 244), (208, 236, 250))
    draw.clouds(draw.rng.randint(0, 2))
    draw.ground(draw.shade((196, 190, 92)), 0.46)
    x, white = draw.rng.choice((0.02, 0.66)), (244, 240, 232)
    barn = draw.shade((188, 62, 52))
    draw.rectangle(x, 0.32, x + 0.32, 0.62, barn)
    draw.polygon(draw.shade((110, 70, 62), 6), (x - 0.03, 0.32), (x + 0.16, 0.16), (x + 0.35, 0.32))
    draw.rectangle(x + 0.1, 0.42, x + 0.22, 0.62, (246, 240, 230))
    draw.rectangle(x + 0.115, 0.435, x + 0.205, 0.62, barn)
    draw.ground(draw.shade((124, 184, 84)), 0.36)
    for top in (0.66, 0.71):
        draw.rectangle(0, top, 1, top + 0.018, white)
    for post in range(7):
        left = 0.03 + 0.155 * post
        draw.rectangle(left, 0.62, left + 0.025, 0.77, white)


def lake(draw: ScaledDraw) -> None:
    """Hills behind calm water, reeds at the shore."""
    draw.gradient((150, 206, 246), (222, 240, 250))
    draw.clouds(draw.rng.randint(0, 2))
    for x in (0.1, 0.5, 0.9):
        centre, height = x + draw.rng.uniform(-0.1, 0.1), draw.rng.uniform(0.12, 0.2)
        draw.ellipse(centre, 0.5, 0.36, height, draw.shade((92, 150, 104)))
    draw.rectangle(0, 0.48, 1, 1, draw.shade((74, 146, 196)))
    for _ in range(draw.rng.randint(6, 10)):
        x, y, width = draw.rng.uniform(0, 1), draw.rng.uniform(0.52, 0.74), draw.rng.uniform(0.05, 0.12)
        draw.ellipse(x, y, width, 0.008, (150, 204, 232))
    draw.ground(draw.shade((126, 176, 92)), 0.24)
    edge = draw.rng.choice((0.02, 0.8))
    for reed in range(6):
        x = edge + 0.03 * reed
        draw.line(x, 0.82, x, 0.6 + 0.04 * (reed % 3), (70, 120, 60), 1 / 80)


def cave(draw: ScaledDraw) -> None:
    """Dark rock with a bright opening and stalactites."""
    draw.gradient((58, 50, 62), (92, 80, 84))
    x = draw.rng.uniform(0.3, 0.7)
    for radius, colour in ((0.34, (120, 110, 120)), (0.27, (170, 190, 206)), (0.2, (214, 234, 244))):
        draw.ellipse(x, 0.4, radius, radius * 1.05, colour)
    left = -0.02
    while left < 1:
        width, length = draw.rng.uniform(0.06, 0.12), draw.rng.uniform(0.08, 0.26)
        draw.polygon(draw.shade((48, 42, 54), 6), (left, 0), (left + width, 0), (left + width / 2, length))
        left += width
    draw.ground(draw.shade((84, 74, 80), 6), 0.34)


def hall(draw: ScaledDraw) -> None:
    """A castle hall: stone walls, arched windows, banners, a carpet."""
    draw.fill(draw.shade((168, 162, 156), 6))
    joint = (146, 140, 136)
    for row in range(9):
        y = row * 0.085
        draw.line(0, y, 1, y, joint)
        for column in range(6):
            x = (column + 0.5 * (row % 2)) * 0.2
            draw.line(x, y, x, y + 0.085, joint)
    light = draw.shade((196, 226, 244), 6)
    for x in (0.16, 0.5, 0.84):
        draw.rectangle(x - 0.07, 0.18, x + 0.07, 0.42, light)
        draw.ellipse(x, 0.18, 0.07, 0.08, light)
    banner = draw.shade(draw.rng.choice(((178, 40, 50), (60, 80, 160), (70, 120, 80))), 8)
    for x in (0.33, 0.67):
        draw.polygon(banner, (x - 0.05, 0.08), (x + 0.05, 0.08), (x + 0.05, 0.44), (x, 0.5), (x - 0.05, 0.44))
    draw.rectangle(0, 0.72, 1, 1, draw.shade((132, 116, 108), 6))
    draw.polygon(draw.shade((170, 44, 50), 8), (0.36, 0.72), (0.64, 0.72), (0.86, 1), (0.14, 1))


def rooftop(draw: ScaledDraw) -> None:
    """A flat roof with a railing above a skyline in the evening."""
    draw.gradient(*draw.rng.choice((((250, 176, 130), (255, 226, 180)), ((130, 190, 240), (220, 236, 246)))))
    for x, width, top in draw.row((0.07, 0.14), (0.26, 0.56), start=0.05):
        draw.rectangle(x, top, x + width, 1, draw.shade((132, 136, 166), 14))
    railing = (84, 84, 96)
    draw.rectangle(0, 0.74, 1, 1, draw.shade((186, 160, 146)))
    draw.rectangle(0, 0.58, 1, 0.6, railing)
    for post in range(11):
        left = 0.01 + 0.1 * post
        draw.line(left, 0.58, left, 0.76, railing, 1 / 90)


PLACES: dict[str, Callable[[ScaledDraw], None]] = {
    place.__name__: place
    for place in (
        *(snow, beach, meadow, desert, night, sunset, space, sea, city, forest, rain, mountains, room, sky),
        *(kitchen, bedroom, library, stage, street, farm, lake, cave, hall, rooftop),
    )
}
# Backgrounds without a ground: objects cast no shadow.
FLOATING = frozenset({"space", "sea", "sky", *COLOURS})
# The factors of red, green and blue at dawn, in the morning, at noon, in the evening and at dusk.
DAYLIGHT = np.array([(0.8, 0.76, 0.88), (1.0, 0.95, 0.88), (1.06, 1.06, 1.06), (1.02, 0.87, 0.66), (0.58, 0.58, 0.8)])
# Backgrounds whose light is a part of them change less.
LIT = frozenset({"night", "sunset", "space", "stage", "street", "cave", *COLOURS})
LIT_STRENGTH = 0.3
# Class index of every background.
BACKGROUNDS = (*PLACES, *COLOURS)


def render_background(name: str, size: int, rng: Random) -> Image.Image:
    """An RGB image of the place or plain colour; antialiased by 2x supersampling."""
    draw = ScaledDraw(2 * size, rng)
    if name in COLOURS:
        draw.fill(draw.shade(COLOURS[name], 8))
    else:
        PLACES[name](draw)
    return draw.image.reduce(2)


def relight(image: np.ndarray, name: str, hour: float) -> np.ndarray:
    """A background [h, w, 3], uint8, in the daylight of an hour from 0, dawn, to 1, dusk."""
    position = hour * (len(DAYLIGHT) - 1)
    start = min(int(position), len(DAYLIGHT) - 2)
    factors = DAYLIGHT[start] + (position - start) * (DAYLIGHT[start + 1] - DAYLIGHT[start])
    if name in LIT:
        factors = 1 + LIT_STRENGTH * (factors - 1)
    return (image * factors).clip(0, 255).astype(np.uint8)
