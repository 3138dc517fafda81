"""What a scene may be called: article, order, synonyms, style and place in many ways."""

from random import Random

from canvas.training.backgrounds import COLOURS

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "snow": ("in the snow", "in snow", "in a snowy landscape", "in winter"),
    "beach": ("on the beach", "at the beach", "by the sea", "on the sand"),
    "meadow": ("in a meadow", "on the grass", "in a field of flowers", "in a green field"),
    "desert": ("in the desert", "in a desert", "on the dunes"),
    "night": ("at night", "under the stars", "in the night", "under the night sky"),
    "sunset": ("at sunset", "in the sunset", "at dusk", "in the evening"),
    "space": ("in space", "in outer space", "among the stars"),
    "sea": ("under the sea", "under water", "underwater", "in the ocean"),
    "city": ("in the city", "in a city", "on the street", "in town"),
    "forest": ("in the forest", "in a forest", "in the woods", "among the trees"),
    "rain": ("in the rain", "on a rainy day", "in a rain storm"),
    "mountains": ("in the mountains", "before the mountains", "on a mountain"),
    "room": ("in a room", "indoors", "at home", "in the living room"),
    "sky": ("in the sky", "in the clouds", "up in the air", "above the clouds"),
}
COLOUR_PHRASES = ("on a {} background", "on {}", "{} background", "on a plain {} background")
STYLE_PHRASES = (", {}", ", {} style", " in {} style", ", as a {} picture")
NUMBERS = {2: "two", 3: "three", 4: "four"}
SIZES = {"tiny": ("tiny", "small", "little"), "huge": ("huge", "big", "giant")}
POSITIONS = {"left": ("on the left",), "right": ("on the right",)}
# What people write around a prompt and what must change nothing.
OPENINGS = ("a picture of", "a drawing of", "an illustration of", "an image of", "a photo of")
ADJECTIVES = ("cute", "happy", "lovely", "pretty", "nice", "funny", "friendly", "sweet", "young")
PRAISE = (
    "high quality",
    "highly detailed",
    "masterpiece",
    "beautiful",
    "best quality",
    "cute",
    "professional",
    "sharp focus",
    "4k",
)
TAIL = (
    *PRAISE,
    "trending on artstation",
    "soft light",
    "cinematic lighting",
    "intricate",
    "8k",
    "storybook",
    "award winning",
    "vivid colors",
    "elegant",
    "detailed background",
    "studio quality",
    "smooth",
    "wallpaper",
    "very detailed",
    "concept art",
    "fantasy",
    "sharp",
    "wonderful",
    "digital painting",
    "hdr",
    "ultra realistic",
    "depth of field",
)


def article(words: str) -> str:
    """`a fox`, `an owl`; none before plurals and stuffs."""
    last = words.rsplit(maxsplit=1)[-1]
    if last in {
        "milk",
        "coffee",
        "wine",
        "beer",
        "bread",
        "fire",
        "popcorn",
        "spaghetti",
        "sushi",
        "garlic",
        "corn",
        "yarn",
        "chocolate",
        "bacon",
        "candy",
    }:
        return words
    if (last.endswith("s") and not last.endswith(("ss", "us", "is"))) or last == "dice":
        return words
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('uni') else 'a'} {words}"


def plural(words: str) -> str:
    """`three apples`: the plural of the last word, by the common rules."""
    irregular = {
        "mouse": "mice",
        "goose": "geese",
        "sheep": "sheep",
        "fish": "fish",
        "tooth": "teeth",
        "deer": "deer",
        "wolf": "wolves",
        "scarf": "scarves",
    }
    head, _, last = words.rpartition(" ")
    if last in irregular:
        last = irregular[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last = last if last.endswith("s") else f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last = f"{last}s"
    return f"{head} {last}".strip()


def place_phrase(place: str, rng: Random) -> str:
    """One of the ways to say where."""
    if place in COLOURS:
        return rng.choice(COLOUR_PHRASES).format(place)
    phrases = PLACE_PHRASES[place]
    return phrases[0] if rng.random() < 0.5 else rng.choice(phrases)


def subject_phrase(words: list[str], count: int, size: str, rng: Random) -> str:
    """The things alone: `a tiny fox`, `three apples`, `a fox and a moon`."""
    if count > 1:
        return f"{NUMBERS[count]} {plural(words[0])}"
    size_word = rng.choice(SIZES[size]) + " " if size else ""
    named = [
        article(size_word + word) if rng.random() < 0.85 else size_word + word for word in words
    ]
    if rng.random() < 0.06:
        named[0] = article(f"{rng.choice(ADJECTIVES)} {size_word}{words[0]}")
    return rng.choice((" and ", " and ", " next to ", " with ")).join(named)


def caption(subject: str, place: str, style: str, position: str, rng: Random) -> str:
    """The whole prompt; an empty place or style is left out."""
    where = place_phrase(place, rng) if place else ""
    if position:
        side = rng.choice(POSITIONS[position])
        where = f"{side} {where}".strip() if rng.random() < 0.7 else f"{where} {side}".strip()
    text = f"{subject}{', ' if where and rng.random() < 0.15 else ' '}{where}".strip()
    if style:
        chance = rng.random()
        if chance < 0.62:
            text += ", " + style
        elif chance < 0.82:
            text += rng.choice(STYLE_PHRASES).format(style)
        elif chance < 0.92:
            text = f"{style} picture of {text}"
        else:
            text = f"{style}, {text}"
    if rng.random() < 0.05:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.12:
        most = rng.choice((3, 3, len(TAIL)))
        text += ", " + ", ".join(rng.sample(TAIL, rng.randint(1, most)))
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:] + rng.choice(("", "."))
    return text
