"""The tokenizer: a token for each word of layouts and places, and four for each thing in each style.

The normalizer replaces names and phrases by their tokens, `a fox in the snow` by `fox·1 fox·2 fox·3 fox·4 in_snow`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, COLOURS
from canvas.training.captions import COLOUR_PHRASES, DEFAULT_STYLE, PLACE_PHRASES, POSITIONS, in_style
from canvas.training.recolour import RECOLOURS
from canvas.training.scenes import DOWN, RIGHT, SHIFTS_DOWN, SHIFTS_RIGHT, shift_modifier

SPECIAL_TOKENS = ("<bos>", "<pad>", "<unk>")
LAYOUT_WORDS = ("and", ",", "left", "right", "tiny", "two", "three")
# Of all boxes; no layout shifts them further than "tiny"
RIGHT_SHIFTS = {shift_modifier(cells, RIGHT): cells for cells in SHIFTS_RIGHT["tiny"] if cells}
DOWN_SHIFTS = {shift_modifier(cells, DOWN): cells for cells in SHIFTS_DOWN if cells}
SHIFTS = (*RIGHT_SHIFTS, *DOWN_SHIFTS)
WORDS = (*SPECIAL_TOKENS, *LAYOUT_WORDS, *BACKGROUNDS, *RECOLOURS, *SHIFTS)
NUM_SPECIAL_TOKENS = len(SPECIAL_TOKENS)

NUM_QUADRANTS = 4  # of a drawing, each of which has a token
UNSTYLED = "~"  # before the tokens of a thing but the first, until they have its style

NORMALIZER = normalizers.Sequence(  # articles are dropped
    [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\b(an?|the)\s+"), "")]
)


@dataclass(frozen=True)
class Source:
    """What a token stands for: a word (an index of WORDS) or a quadrant of a drawing of the sprites."""

    word: int = 2
    drawing: int | None = None
    quadrant: int = 0


@dataclass(frozen=True)
class TokenTable:
    """The tokens by id, what they stand for, and the text of prompts that is replaced by tokens."""

    tokens: tuple[str, ...]
    sources: tuple[Source, ...]
    phrases: Mapping[str, str]  # things without a style have NUM_QUADRANTS tokens, all else has one

    @classmethod
    def build(cls, sprites: SpriteSet) -> "TokenTable":
        """The tokens of all drawings. Raises ValueError if two things share a name."""
        # Positions and places are named by phrases: "orange" is a thing, "on an orange background" a place
        named = (*POSITIONS, *BACKGROUNDS, *RECOLOURS, *SHIFTS)
        found = {f"<{word}>" if word in named else word: Source(index) for index, word in enumerate(WORDS)}
        names = {*found}
        for row, style in sprites.index:
            name = in_style(sprites.concepts[row].name, STYLES[style])
            if name in names:
                raise ValueError(f"{name!r} is the name of two things, or a word of a layout or place.")
            names.add(name)
        phrases = {word: word for word in LAYOUT_WORDS if word not in named}
        for row, concept in enumerate(sprites.concepts):
            drawings = {style: sprites.index.get((row, STYLES.index(style))) for style in (DEFAULT_STYLE, *STYLES)}
            any_style = next(drawing for drawing in drawings.values() if drawing is not None)
            for style, drawing in drawings.items():
                for quadrant, token in enumerate(_thing_tokens(concept.name, style)):
                    found[token] = Source(drawing=any_style if drawing is None else drawing, quadrant=quadrant)
            first, *others = _thing_tokens(concept.name, DEFAULT_STYLE)
            phrases[concept.name] = f" {UNSTYLED}".join([first, *others])
        for phrase, word in _word_phrases():
            if phrase not in phrases:
                phrases[phrase] = _join(phrase)
                found.setdefault(_join(phrase), Source(WORDS.index(word)))
        return cls(tuple(found), tuple(found.values()), phrases)


def _word_phrases() -> Iterator[tuple[str, str]]:
    """The phrases of places, colours, positions and modifiers, and their words."""
    for place, phrases in PLACE_PHRASES.items():
        yield from ((NORMALIZER.normalize_str(phrase), place) for phrase in phrases)
    for colour in COLOURS:
        yield from ((NORMALIZER.normalize_str(phrase.format(colour)), colour) for phrase in COLOUR_PHRASES)
    yield from ((phrase, position) for position, phrase in POSITIONS.items())
    yield from ((word, word) for word in (*RECOLOURS, *SHIFTS))


def _join(words: str) -> str:
    return words.replace(" ", "_")


def _prefix(style: str) -> str:
    return "" if style == DEFAULT_STYLE else f"{style}:"


def _thing_tokens(name: str, style: str) -> list[str]:
    return [f"{_prefix(style)}{_join(name)}·{number + 1}" for number in range(NUM_QUADRANTS)]


def build_normalizer(table: TokenTable) -> normalizers.Sequence:
    """Replaces phrases by their tokens, long ones first, and gives the tokens of a thing its style."""
    space = normalizers.Replace(Regex(r"\s+|(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)|^|$"), "  ")
    separate = normalizers.Sequence([NORMALIZER, space])
    steps: list[normalizers.Normalizer] = [separate]
    for phrase in sorted(table.phrases, key=len, reverse=True):
        words = separate.normalize_str(phrase).strip()
        steps.append(normalizers.Replace(f" {words} ", f" {table.phrases[phrase]} "))
    for style in STYLES:
        prefix = _prefix(style)
        steps.append(normalizers.Replace(Regex(rf" {style}  (?=[^\s:]+·1 )"), f" {prefix}"))
        for number in range(1, NUM_QUADRANTS) if prefix else ():
            steps.append(normalizers.Replace(Regex(rf" {prefix}\S+·{number} \K{UNSTYLED}"), prefix))
    return normalizers.Sequence([*steps, normalizers.Replace(UNSTYLED, "")])


def build_tokenizer(table: TokenTable, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose phrases are read before single words; articles are dropped."""
    ids = {token: index for index, token in enumerate(table.tokens)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106 - not a password
    backend.normalizer = build_normalizer(table)
    # Not added tokens: for each token of a prompt, diffusers makes a dictionary of them all.
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin_and_end = [("<bos>", 0), ("<pad>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <pad>", special_tokens=begin_and_end)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",  # noqa: S106
        eos_token="<pad>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=length,
    )


def save_tokenizer(table: TokenTable, length: int, folder: Path) -> None:
    """Write the folder of the tokenizer."""
    build_tokenizer(table, length).save_pretrained(folder)
