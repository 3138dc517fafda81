"""The tokenizer: a token for each word of layouts and places, and for each thing in each style."""

import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, COLOURS
from canvas.training.captions import COLOUR_PHRASES, DEFAULT_STYLE, PLACE_PHRASES, POSITIONS, in_style

SPECIAL_TOKENS = ("<bos>", "<pad>", "<unk>")
LAYOUT_WORDS = ("and", ",", "left", "right", "tiny", "two", "three")
WORDS = (*SPECIAL_TOKENS, *LAYOUT_WORDS, *BACKGROUNDS)
NUM_SPECIAL_TOKENS, NUM_WORDS = len(SPECIAL_TOKENS), len(WORDS)

NORMALIZER = normalizers.Sequence(  # articles are dropped
    [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\b(an?|the)\s+"), "")]
)


@dataclass(frozen=True)
class Source:
    """What a token stands for: a word (an index of WORDS) or a drawing of the sprites."""

    word: int = 2
    drawing: int | None = None


@dataclass(frozen=True)
class TokenTable:
    """The tokens by id, and what they stand for; several tokens may stand for the same."""

    tokens: tuple[str, ...]
    sources: tuple[Source, ...]

    @classmethod
    def build(cls, sprites: SpriteSet) -> "TokenTable":
        """The tokens of all drawings. Raises ValueError if two things share a name."""
        # Positions and places are named by phrases: "orange" is a thing, "on an orange background" a place
        named = (*POSITIONS, *BACKGROUNDS)
        found = {f"<{word}>" if word in named else word: Source(index) for index, word in enumerate(WORDS)}
        for (concept, style), drawing in sprites.index.items():
            name = in_style(sprites.concepts[concept].name, STYLES[style])
            if name in found:
                raise ValueError(f"{name!r} is the name of two things, or a word of a layout or place.")
            found[name] = Source(drawing=drawing)
        for row, concept in enumerate(sprites.concepts):  # those without a drawing in the default style
            styles = [style for style in (DEFAULT_STYLE, *STYLES) if (row, STYLES.index(style)) in sprites.index]
            found.setdefault(concept.name, Source(drawing=sprites.index[row, STYLES.index(styles[0])]))
        for place, phrases in PLACE_PHRASES.items():
            for phrase in phrases:
                found.setdefault(NORMALIZER.normalize_str(phrase), Source(WORDS.index(place)))
        for colour in COLOURS:
            for phrase in COLOUR_PHRASES:
                found.setdefault(NORMALIZER.normalize_str(phrase.format(colour)), Source(WORDS.index(colour)))
        for position, phrase in POSITIONS.items():
            found.setdefault(phrase, Source(WORDS.index(position)))
        return cls(tuple(found), tuple(found.values()))


def build_tokenizer(table: TokenTable, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose phrases are read before single words; articles are dropped."""
    ids = {NORMALIZER.normalize_str(token): index for index, token in enumerate(table.tokens)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106 - not a password
    backend.normalizer = NORMALIZER
    # Not added tokens: for each token of a prompt, diffusers makes a dictionary of them all.
    phrases = sorted((token for token in ids if not token.isalpha()), key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)|\w+|[^\w\s]+"
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
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
