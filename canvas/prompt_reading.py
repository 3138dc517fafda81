"""What a model with a vocabulary understands of a prompt, and the prompt that it gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from canvas.errors import LazyMessage
from canvas.vocabulary import Meaning, Part, Vocabulary, joined, key_of

MAX_SHOWN = 8  # words of a note
PARTICLES = ("的", "の")  # between a colour and its thing
ON = ("on", "on a", "auf", "sobre", "sur", "en")  # in front of a background


def understand(vocabulary: Vocabulary, prompt: str, *, seed: int | None = None, like: str = "") -> Understanding:
    """How the model reads a prompt; the seed decides what is left open: a place, and where in it things are.

    With `like`, a prompt of the model, as many things of the same size are where they are in that.
    """
    other = _read(vocabulary, like) if like else None
    return _understanding(_read(vocabulary, prompt), prompt.strip(), seed, other)


@dataclass(frozen=True)
class Item:
    """Something understood: the words that the model gets, and the user's if they differ."""

    words: str
    written: str = ""


@dataclass(frozen=True)
class Understanding:
    """How a model reads a prompt.

    `prompt`: what it gets, in the words of its captions. `understood`: what stands in it. `unknown`:
    the user's words without a meaning; `nearest`: the closest known thing for some of them.
    `left_out`: known words that cannot be combined with the rest. `added`: the place chosen where none is named.
    """

    prompt: str
    understood: tuple[Item, ...] = ()
    unknown: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    nearest: Mapping[str, str] = field(default_factory=dict)
    added: str = ""

    @property
    def nothing_known(self) -> bool:
        return not self.understood

    @property
    def changed(self) -> bool:
        """Whether there is more to say than that everything was understood."""
        return bool(self.unknown or self.left_out or self.added or any(item.written for item in self.understood))

    @property
    def note(self) -> str:
        """The difference between the user's words and the model's in English; "" if there is none."""
        if not self.changed:
            return ""
        sentences = []
        if self.understood:
            items = [f"{item.words} (from {item.written})" if item.written else item.words for item in self.understood]
            sentences.append(f"Understood: {', '.join(items)}.")
        if self.unknown:
            words = [
                f"{word} (nearest: {self.nearest[word]})" if word in self.nearest else word for word in self.unknown
            ]
            sentences.append(f"Not known: {_shortened(words)}.")
        if self.left_out:
            sentences.append(f"Left out: {_shortened(self.left_out)}.")
        if self.added:
            sentences.append(f"Added, as no place was named: {self.added}.")
        return " ".join(sentences)


def _shortened(words: Sequence[str]) -> str:
    return ", ".join(words[:MAX_SHOWN]) + (" …" if len(words) > MAX_SHOWN else "")


@dataclass
class _Thing:
    """A thing with its adjectives: the model's words, and those of the prompt."""

    name: str
    count: int = 0
    count_text: str = ""
    size: str = ""
    size_text: str = ""
    colour: str = ""
    colour_text: str = ""
    written: str = ""  # the user's words if the model has others
    style: str = ""


@dataclass
class _Reading:
    """What a prompt says in the words of the model."""

    vocabulary: Vocabulary
    things: dict[str, _Thing] = field(default_factory=dict)
    place: tuple[str, str] | None = None  # name and, if it is a synonym, the user's word
    style: tuple[str, str] | None = None
    style_text: str = ""
    position: str = ""
    position_text: str = ""
    modifiers: list[str] = field(default_factory=list)  # as the model writes them: "hue 90", "2 left"
    unknown: list[list[str]] = field(default_factory=list)  # of adjacent words
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, text: str) -> None:
        """Remember words that the model does not get; "" is none."""
        if text:
            self.left_out.append(text)

    @property
    def shifts(self) -> list[str]:
        """The modifiers that say where in the image things are."""
        return [modifier for modifier in self.modifiers if modifier not in self.vocabulary.hue_modifiers]

    @property
    def layout(self) -> str:
        """The name that the recipe of the built-in model has for the arrangement; "" without things."""
        things = list(self.things.values())
        if len(things) != 1:
            return {0: "", 2: "pair"}.get(len(things), "trio")
        return {2: "two", 3: "three"}.get(things[0].count, "tiny" if things[0].size else self.position or "one")

    def caption(self, added: str) -> str:
        """The prompt in the words of captions: things, their side, the place or the one that is added."""
        vocabulary = self.vocabulary
        things = [vocabulary.caption(each.name, each.count, each.size, each.style) for each in self.things.values()]
        words = [" and ".join(filter(None, (", ".join(things[:-1]), *things[-1:])))]
        if things and self.position:
            words.append(f"on the {self.position}")
        if place := self.place[0] if self.place else added:
            words.append(vocabulary.place_phrase(place))
        words += self.modifiers if things else []
        return " ".join(filter(None, words))


def _read(vocabulary: Vocabulary, prompt: str) -> _Reading:
    reader = _Reader(vocabulary, vocabulary.parts(prompt))
    reader.read()
    return reader.reading


class _Reader:
    """Collects the parts of one prompt."""

    def __init__(self, vocabulary: Vocabulary, parts: Sequence[Part]) -> None:
        self.reading = _Reading(vocabulary)
        self._parts = parts
        self._place_is_vague = False
        self._next = _Thing("")  # with the adjectives of the thing that follows

    def read(self) -> None:
        """Add all parts to the reading."""
        negated = adjacent = False
        for index, part in enumerate(self._parts):
            meaning = part.meaning
            kind = meaning.kind if meaning else None
            if kind in (None, "break", "stop", "negation", "place") and part.text not in PARTICLES:
                self.reading.leave_out(self._next.colour_text)  # it is not the colour of the next thing
                self._next.colour = self._next.colour_text = ""
            if kind in ("break", "negation"):
                negated = kind == "negation"
                if negated:
                    self.reading.left_out.append(part.text)
            elif negated:
                self.reading.left_out[-1] += f" {part.text}"
            elif meaning is None:
                self._add_unknown(part.text, adjacent=adjacent)
            elif meaning.kind == "colour":
                self._add_colour(index, part, meaning.name)
            else:
                self._add(part, meaning)
            adjacent = meaning is None and not negated
        self.reading.leave_out(self._next.colour_text)

    def _add(self, part: Part, meaning: Meaning) -> None:
        written = "" if meaning.own else part.text
        if meaning.kind == "thing":
            self._add_thing(part, meaning)
        elif meaning.kind == "place":
            self._add_place(meaning.name, part)
        elif meaning.kind == "style":
            if self.reading.style is None:
                named = meaning.name in key_of(part.text).split()  # as in "cartoon style"
                self.reading.style, self.reading.style_text = (meaning.name, "" if named else written), part.text
            elif self.reading.style[0] != meaning.name:
                self.reading.left_out.append(part.text)
        elif meaning.kind == "count":
            self._next.count, self._next.count_text = int(meaning.name), part.text
            self._next.written = written and f"{part.text} "
        elif meaning.kind == "size":
            self._next.size, self._next.size_text = meaning.name, part.text
        elif meaning.kind == "modifier":
            self.reading.modifiers.append(meaning.name)
        elif meaning.kind == "position":
            self.reading.position, self.reading.position_text = meaning.name, part.text

    def _add_thing(self, part: Part, meaning: Meaning) -> None:
        thing, self._next = self._next, _Thing("")
        thing.name = meaning.name
        if thing.name in self.reading.things:
            self.reading.leave_out(thing.colour_text)
            return
        if len(self.reading.things) >= self.reading.vocabulary.max_things:
            self.reading.left_out.append(" ".join(filter(None, (thing.colour_text, part.text))))
            return
        is_own_colour = key_of(thing.colour_text) == thing.colour
        is_own = meaning.own and is_own_colour and not thing.written and not (part.plural and not thing.count)
        colour = f"{thing.colour_text} " if thing.colour else ""
        thing.written = "" if is_own else f"{thing.written}{colour}{part.text}"
        thing.count = min(thing.count or (2 if part.plural else 1), self.reading.vocabulary.max_count)
        self.reading.things[thing.name] = thing

    def _add_place(self, name: str, part: Part) -> None:
        """The first place counts, except after a vague one such as "landscape"."""
        if self.reading.place is None or self._place_is_vague:
            own = part.meaning is not None and part.meaning.own
            self.reading.place = (name, "" if own else part.text)
            self._place_is_vague = self.reading.vocabulary.is_vague(part.text)
        elif self.reading.place[0] != name and not self.reading.vocabulary.is_vague(part.text):
            self.reading.left_out.append(part.text)

    def _add_colour(self, index: int, part: Part, name: str) -> None:
        """A colour beside the word "background" is that of the background, as is the last word after "on".

        Any other is that of the thing that follows or, as in French, that precedes it.
        """
        neighbours = [each.meaning for each in (*self._parts[max(0, index - 1) : index], *self._parts[index + 1 :][:1])]
        beside = any(meaning and meaning.kind == "background" for meaning in neighbours)
        following = next(iter(self._parts[index + 1 :]), None)
        following_kind = following.meaning.kind if following and following.meaning else ""
        ends = following is None or following_kind == "break"
        preceding = key_of(self._parts[index - 1].text) if index else ""
        if beside or (ends and self.reading.things and preceding in ON):
            self._add_place(name, part)
        else:
            previous = self._parts[index - 1] if index else None
            thing: _Thing | None = self._next
            if (
                previous
                and previous.meaning
                and previous.meaning.kind == "thing"
                and following_kind not in ("thing", "place")
            ):
                thing = self.reading.things.get(previous.meaning.name)
                if thing is not None and (thing.written or key_of(part.text) != name):
                    thing.written = f"{thing.written or previous.text} {part.text}"
            if thing is None:
                self.reading.left_out.append(part.text)
            else:
                self.reading.leave_out(thing.colour_text)
                thing.colour, thing.colour_text = name, part.text

    def _add_unknown(self, word: str, *, adjacent: bool) -> None:
        if not any(character.isalpha() for character in word):
            return  # numbers, and signs of emphasis
        if adjacent and self.reading.unknown:
            self.reading.unknown[-1].append(word)
        else:
            self.reading.unknown.append([word])


def _understanding(reading: _Reading, prompt: str, seed: int | None, other: _Reading | None) -> Understanding:
    """Leave out what cannot be combined and choose what is left open; changes the reading."""
    vocabulary = reading.vocabulary
    _leave_out_combinations(reading)
    if other and reading.things and other.things:
        _arrange_like(reading, other)
    _check_modifiers(reading)
    has_style = _choose_styles(reading, reading.style[0] if reading.style else vocabulary.styles[0])
    _choose_colours(reading)
    understood = [
        Item(vocabulary.subject(thing.name, thing.count, thing.size, thing.colour), thing.written)
        for thing in reading.things.values()
    ]
    added = ""
    if reading.things and seed is not None:
        added = _choose_by_seed(reading, next(iter(reading.things)), seed)
    if reading.place:
        name, written = reading.place
        phrase = vocabulary.place_phrase(name)
        understood.append(Item(phrase, "" if key_of(written) in key_of(phrase) else written))
    if reading.style and has_style:
        understood.append(Item(*reading.style))
    unknown = tuple(dict.fromkeys(joined(words) for words in reading.unknown))
    return Understanding(
        reading.caption(added) or prompt,
        tuple(understood),
        unknown,
        tuple(dict.fromkeys(reading.left_out)),
        {word: near for word in unknown if (near := _nearest(vocabulary, word))},
        vocabulary.place_phrase(added) if added else "",
    )


def _leave_out_combinations(reading: _Reading) -> None:
    """Several things have no numbers, sizes, side and colours, and two of one thing no size and side."""
    several = len(reading.things) > 1
    if several or any(thing.count > 1 or thing.size for thing in reading.things.values()):
        reading.leave_out(reading.position_text)
        reading.position = ""
    for thing in reading.things.values():
        if several and thing.count > 1:
            reading.leave_out(thing.count_text)
            thing.count = 1
        if several or thing.count > 1:
            reading.leave_out(thing.size_text)
            thing.size = ""
        if several:
            reading.leave_out(thing.colour_text)
            thing.colour = ""


def _arrange_like(reading: _Reading, other: _Reading) -> None:
    """Take the side and the shift of another prompt with as many things of the same size."""
    if reading.layout == "one" and other.layout in ("left", "right"):
        reading.position = other.position
    if reading.layout == other.layout and not reading.shifts:
        reading.modifiers += other.shifts


def _check_modifiers(reading: _Reading) -> None:
    """Keep one recolouring of one thing, and one shift in each direction that the arrangement allows."""
    groups: list[Collection[str]] = [*reading.vocabulary.shifts.get(reading.layout, ())]
    if len(reading.things) == 1:
        groups.append(reading.vocabulary.hue_modifiers)
    kept: list[str] = []
    for modifier in reading.modifiers:
        group = next((group for group in groups if modifier in group), ())
        if group and not {*group} & {*kept}:
            kept.append(modifier)
        else:
            reading.left_out.append(modifier)
    reading.modifiers = kept


def _choose_styles(reading: _Reading, style: str) -> bool:
    """Choose the style of each thing; whether one of them, or a prompt without things and places, has it."""
    vocabulary = reading.vocabulary
    if not reading.things and reading.place and style != vocabulary.styles[0]:
        reading.leave_out(reading.style_text)
        return False
    for thing in reading.things.values():
        thing.style = vocabulary.style_for(thing.name, style)
        if thing.style != style and reading.style:
            reading.leave_out(f"{reading.style_text} ({thing.name})")
    return not reading.things or any(thing.style == style for thing in reading.things.values())


def _choose_colours(reading: _Reading) -> None:
    """Add the modifier that recolours a thing; none for people, gray drawings, and black, gray and white."""
    vocabulary = reading.vocabulary
    for thing in reading.things.values():
        modifier: str | None = ""
        if thing.colour:
            has_other = bool(vocabulary.hue_modifiers.intersection(reading.modifiers))
            modifier = None if has_other else vocabulary.hue_modifier(thing.name, thing.style, thing.colour)
        if modifier is None:
            reading.leave_out(thing.colour_text)
            thing.colour = ""
        elif modifier:
            reading.modifiers.append(modifier)


def _choose_by_seed(reading: _Reading, first: str, seed: int) -> str:
    """Choose where in the image things are, unless the prompt says so; the place that is added, "" for none."""
    vocabulary = reading.vocabulary
    if vocabulary.shifts and not reading.shifts:
        if reading.layout == "one":
            reading.position = vocabulary.position_for(first, seed)
        reading.modifiers += vocabulary.shift_for(reading.layout, first, seed)
    return vocabulary.background_for(first, seed) if reading.place is None else ""


def _nearest(vocabulary: Vocabulary, words: str) -> str:
    return next(filter(None, map(vocabulary.nearest, [words, *words.split()])), "")


def message_for_nothing(suggestion: str) -> LazyMessage:
    """What to do when a model knows nothing of a prompt; `suggestion` is a model with its size."""
    if not suggestion:
        return LazyMessage("The built-in model knows none of these words. Use one of its things and places.")
    text = "The built-in model knows none of these words. For photos and anything else use {model}."
    return LazyMessage(text, model=suggestion)
