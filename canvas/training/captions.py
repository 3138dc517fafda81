"""The words of prompts: places, numbers, articles and plurals."""

from itertools import takewhile

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
    "kitchen": ("in the kitchen", "in a kitchen", "on the kitchen table"),
    "bedroom": ("in a bedroom", "in the bedroom"),
    "library": ("in a library", "in the library", "among bookshelves"),
    "stage": ("on a stage", "on stage", "in a theater"),
    "street": ("on a street at night", "on the street at night", "in the city at night"),
    "farm": ("on a farm", "on the farm", "before a barn"),
    "lake": ("by a lake", "by the lake", "at the lake"),
    "cave": ("in a cave", "in the cave"),
    "hall": ("in a castle hall", "in a hall", "in a palace"),
    "rooftop": ("on a rooftop", "on the rooftop", "on the roof"),
}
COLOUR_PHRASES = ("on a {} background", "on {}", "{} background", "on a plain {} background")
NUMBERS = {2: "two", 3: "three", 4: "four"}
POSITIONS = {"left": ("on the left",), "right": ("on the right",)}
# Common prompt boilerplate, which must not change the image.
PREFIXES = ("a picture of", "a drawing of", "an illustration of", "an image of", "a photo of")
ADJECTIVES = ("cute", "happy", "lovely", "pretty", "nice", "funny", "friendly", "sweet", "young")
QUALITY_TAGS = (
    "high quality",
    "highly detailed",
    "masterpiece",
    "beautiful",
    "best quality",
    "cute",
    "professional",
    "sharp focus",
    "4k",
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
DEFAULT_STYLE = "3d"  # of prompts that name no style
MASS_NOUNS = frozenset(
    {
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
        *("bacteria", "bamboo", "butter", "confetti", "curry", "garlic", "ginger", "glitter", "honey", "lettuce"),
        *("karate", "meditation", "music", "rice", "sake", "salt", "soup", "sheet music", "stew", "tea", "treasure"),
    }
)
IRREGULAR_PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "fish": "fish",
    "tooth": "teeth",
    "deer": "deer",
    "wolf": "wolves",
    "scarf": "scarves",
    **{
        "skis": "skis",
        "men": "men",
        "women": "women",
        "man": "men",
        "woman": "women",
        "person": "people",
        "child": "children",
        "foot": "feet",
        "ox": "oxen",
    },
    **{"leaf": "leaves", "knife": "knives", "elf": "elves", "moose": "moose", "bison": "bison", "shrimp": "shrimp"},
    **{"merman": "mermen", "snowman": "snowmen", "dice": "dice", "tomato": "tomatoes", "potato": "potatoes"},
    **{"mango": "mangoes", "loaf": "loaves", "buffalo": "buffaloes", "volcano": "volcanoes"},
}
SINGULAR_ENDINGS = ("ss", "us", "is", "ceros")
# The words before these are the noun: `piece of cake`, `heart with a ribbon`.
PREPOSITIONS = frozenset(
    {
        *("of", "with", "without", "in", "on", "at", "behind", "and", "from", "by", "to", "showing", "facing"),
        *("reaching", "pushing", "blowing", "covering", "holding", "shaking", "taking"),
    }
)
# Words held out of all scene captions, with the concepts that count as correct; for evaluation.
NEAR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "puppy": ("dog",),
    "kitten": ("cat",),
    "bunny": ("rabbit",),
    "piglet": ("pig",),
    "calf": ("cow",),
    "pony": ("horse",),
    "lamb": ("sheep", "ram"),
    "duckling": ("duck", "chick"),
    "serpent": ("snake",),
    "toad": ("frog",),
    "tortoise": ("turtle",),
    "alligator": ("crocodile",),
    "grizzly": ("bear",),
    "wasp": ("bee",),
    "moth": ("butterfly",),
    "vessel": ("ship", "sailboat", "speedboat"),
    "yacht": ("sailboat", "speedboat"),
    "jet": ("airplane",),
    "chopper": ("helicopter",),
    "lorry": ("truck", "semi truck"),
    "sedan": ("car", "suv"),
    "cottage": ("house", "hut"),
    "fortress": ("castle",),
    "chapel": ("church",),
    "clinic": ("hospital",),
    "cheeseburger": ("hamburger",),
    "muffin": ("cupcake",),
    "biscuit": ("cookie",),
    "espresso": ("coffee",),
    "ale": ("beer",),
    "gift": ("present",),
    "necklace": ("ring", "diamond"),
    "blossom": ("cherry blossom", "daisy"),
    "pine": ("fir tree",),
    "toadstool": ("mushroom",),
    "lamp": ("light bulb", "flashlight", "paper lantern"),
    "computer": ("laptop", "desktop computer"),
    "trainers": ("running shoe",),
    "spectacles": ("glasses",),
    "android": ("robot",),
    "spook": ("ghost",),
    "infant": ("baby",),
    "cosmonaut": ("astronaut",),
    "rucksack": ("backpack",),
    "cycle": ("bicycle",),
    "parcel": ("package",),
    "blade": ("swords", "kitchen knife"),
    "flames": ("fire",),
    "orb": ("crystal ball",),
    "squirrel": ("chipmunk", "hamster"),
}


def in_style(name: str, style: str) -> str:
    """A thing in a style, as prompts of the model name it: `fox`, `flat fox`."""
    return name if style == DEFAULT_STYLE else f"{style} {name}"


def article(words: str) -> str:
    """The words with an indefinite article (`a fox`, `an owl`); none for plurals and mass nouns."""
    last = _noun(words).rsplit(maxsplit=1)[-1]
    if last in MASS_NOUNS or words in MASS_NOUNS:
        return words
    if last in ("skis", "dice", "men", "women") or (last.endswith("s") and not last.endswith(SINGULAR_ENDINGS)):
        return words
    is_vowel = (words[0] in "aeiou" and not words.startswith("uni")) or words.startswith("hour")
    return f"{'an' if is_vowel else 'a'} {words}"


def _noun(words: str) -> str:
    """The words up to the first preposition."""
    first, *rest = words.split()
    return " ".join([first, *takewhile(lambda word: word not in PREPOSITIONS, rest)])


def plural(words: str) -> str:
    """The plural of the noun, by common rules: `red apples`, `pieces of cake`."""
    noun = _noun(words)
    head, _, last = noun.rpartition(" ")
    following = words.removeprefix(noun)
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith(("x", "ch", "sh", *SINGULAR_ENDINGS)):
        last = f"{last}es"
    elif last.endswith("s"):
        pass
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last = f"{last}s"
    return f"{head} {last}".strip() + following
