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
    other = _Reading(vocabulary, vocabulary.parts(like)) if like else None
    return _Reading(vocabulary, vocabulary.parts(prompt)).result(prompt.strip(), seed, other)


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


class _Reading:
    """Collects the parts of one prompt."""

    def __init__(self, vocabulary: Vocabulary, parts: Sequence[Part]) -> None:
        self._vocabulary = vocabulary
        self._parts = parts
        self._things: dict[str, _Thing] = {}
        self._place: tuple[str, str] | None = None  # name and, if it is a synonym, the user's word
        self._place_is_vague = False
        self._style: tuple[str, str] | None = None
        self._style_text = self._position = self._position_text = ""
        self._modifiers: list[str] = []  # as the model writes them: "hue 90", "2 left"
        self._unknown: list[list[str]] = []  # of adjacent words
        self._left_out: list[str] = []
        self._next = _Thing("")  # with the adjectives of the thing that follows
        self._read()

    def _read(self) -> None:
        negated = adjacent = False
        for index, part in enumerate(self._parts):
            meaning = part.meaning
            kind = meaning.kind if meaning else None
            if kind in (None, "break", "stop", "negation", "place") and part.text not in PARTICLES:
                self._leave_out(self._next.colour_text)  # it is not the colour of the next thing
                self._next.colour = self._next.colour_text = ""
            if kind in ("break", "negation"):
                negated = kind == "negation"
                if negated:
                    self._left_out.append(part.text)
            elif negated:
                self._left_out[-1] += f" {part.text}"
            elif meaning is None:
                self._add_unknown(part.text, adjacent=adjacent)
            elif meaning.kind == "colour":
                self._add_colour(index, part, meaning.name)
            else:
                self._add(part, meaning)
            adjacent = meaning is None and not negated
        self._leave_out(self._next.colour_text)

    def _leave_out(self, text: str) -> None:
        if text:
            self._left_out.append(text)

    def _add(self, part: Part, meaning: Meaning) -> None:
        written = "" if meaning.own else part.text
        if meaning.kind == "thing":
            self._add_thing(part, meaning)
        elif meaning.kind == "place":
            self._add_place(meaning.name, part)
        elif meaning.kind == "style":
            if self._style is None:
                named = meaning.name in key_of(part.text).split()  # as in "cartoon style"
                self._style, self._style_text = (meaning.name, "" if named else written), part.text
            elif self._style[0] != meaning.name:
                self._left_out.append(part.text)
        elif meaning.kind == "count":
            self._next.count, self._next.count_text = int(meaning.name), part.text
            self._next.written = written and f"{part.text} "
        elif meaning.kind == "size":
            self._next.size, self._next.size_text = meaning.name, part.text
        elif meaning.kind == "modifier":
            self._modifiers.append(meaning.name)
        elif meaning.kind == "position":
            self._position, self._position_text = meaning.name, part.text

    def _add_thing(self, part: Part, meaning: Meaning) -> None:
        thing, self._next = self._next, _Thing("")
        thing.name = meaning.name
        if thing.name in self._things:
            self._leave_out(thing.colour_text)
            return
        if len(self._things) >= self._vocabulary.max_things:
            self._left_out.append(" ".join(filter(None, (thing.colour_text, part.text))))
            return
        is_own_colour = key_of(thing.colour_text) == thing.colour
        is_own = meaning.own and is_own_colour and not thing.written and not (part.plural and not thing.count)
        colour = f"{thing.colour_text} " if thing.colour else ""
        thing.written = "" if is_own else f"{thing.written}{colour}{part.text}"
        thing.count = min(thing.count or (2 if part.plural else 1), self._vocabulary.max_count)
        self._things[thing.name] = thing

    def _add_place(self, name: str, part: Part) -> None:
        """The first place counts, except after a vague one such as "landscape"."""
        if self._place is None or self._place_is_vague:
            own = part.meaning is not None and part.meaning.own
            self._place = (name, "" if own else part.text)
            self._place_is_vague = self._vocabulary.is_vague(part.text)
        elif self._place[0] != name and not self._vocabulary.is_vague(part.text):
            self._left_out.append(part.text)

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
        if beside or (ends and self._things and preceding in ON):
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
                thing = self._things.get(previous.meaning.name)
                if thing is not None and (thing.written or key_of(part.text) != name):
                    thing.written = f"{thing.written or previous.text} {part.text}"
            if thing is None:
                self._left_out.append(part.text)
            else:
                self._leave_out(thing.colour_text)
                thing.colour, thing.colour_text = name, part.text

    def _add_unknown(self, word: str, *, adjacent: bool) -> None:
        if not any(character.isalpha() for character in word):
            return  # numbers, and signs of emphasis
        if adjacent and self._unknown:
            self._unknown[-1].append(word)
        else:
            self._unknown.append([word])

    # The result

    def result(self, prompt: str, seed: int | None, other: _Reading | None) -> Understanding:
        vocabulary = self._vocabulary
        self._leave_out_combinations()
        if other and self._things and other._things:
            self._arrange_like(other)
        self._check_modifiers()
        has_style = self._choose_styles(self._style[0] if self._style else vocabulary.styles[0])
        self._choose_colour()
        understood = [
            Item(vocabulary.subject(thing.name, thing.count, thing.size, thing.colour), thing.written)
            for thing in self._things.values()
        ]
        added = ""
        if self._things and seed is not None:
            added = self._choose_by_seed(next(iter(self._things)), seed)
        if self._place:
            name, written = self._place
            phrase = vocabulary.place_phrase(name)
            understood.append(Item(phrase, "" if key_of(written) in key_of(phrase) else written))
        if self._style and has_style:
            understood.append(Item(self._style[0], self._style[1]))
        unknown = tuple(dict.fromkeys(joined(words) for words in self._unknown))
        return Understanding(
            self._caption(added) or prompt,
            tuple(understood),
            unknown,
            tuple(dict.fromkeys(self._left_out)),
            {word: near for word in unknown if (near := self._nearest(word))},
            vocabulary.place_phrase(added) if added else "",
        )

    def _leave_out_combinations(self) -> None:
        """Several things have no numbers, sizes, side and colours, and two of one thing no size and side."""
        several = len(self._things) > 1
        if several or any(thing.count > 1 or thing.size for thing in self._things.values()):
            self._leave_out(self._position_text)
            self._position = ""
        for thing in self._things.values():
            if several and thing.count > 1:
                self._leave_out(thing.count_text)
                thing.count = 1
            if several or thing.count > 1:
                self._leave_out(thing.size_text)
                thing.size = ""
            if several:
                self._leave_out(thing.colour_text)
                thing.colour = ""

    def _arrange_like(self, other: _Reading) -> None:
        """Take the side and the shift of another prompt with as many things of the same size."""
        if self._layout() == "one" and other._layout() in ("left", "right"):
            self._position = other._position
        if self._layout() == other._layout() and not self._shifts:
            self._modifiers += other._shifts

    @property
    def _shifts(self) -> list[str]:
        return [modifier for modifier in self._modifiers if modifier not in self._vocabulary.hue_modifiers]

    def _check_modifiers(self) -> None:
        """Keep one recolouring of one thing, and one shift in each direction that the arrangement allows."""
        layout = self._layout() if self._things else ""
        groups: list[Collection[str]] = [*self._vocabulary.shifts.get(layout, ())]
        if len(self._things) == 1:
            groups.append(self._vocabulary.hue_modifiers)
        kept: list[str] = []
        for modifier in self._modifiers:
            group = next((group for group in groups if modifier in group), ())
            if group and not {*group} & {*kept}:
                kept.append(modifier)
            else:
                self._left_out.append(modifier)
        self._modifiers = kept

    def _choose_colour(self) -> None:
        """Add the modifier that recolours a thing; none for people, gray drawings, and black, gray and white."""
        for thing in self._things.values():
            modifier: str | None = ""
            if thing.colour:
                has_other = bool(self._vocabulary.hue_modifiers.intersection(self._modifiers))
                modifier = None if has_other else self._vocabulary.hue_modifier(thing.name, thing.style, thing.colour)
            if modifier is None:
                self._leave_out(thing.colour_text)
                thing.colour = ""
            elif modifier:
                self._modifiers.append(modifier)

    def _choose_by_seed(self, first: str, seed: int) -> str:
        """Where in the image things are, unless the prompt says so; the place that is added, "" for none."""
        vocabulary = self._vocabulary
        if vocabulary.shifts and not self._shifts:
            if self._layout() == "one":
                self._position = vocabulary.position_for(first, seed)
            self._modifiers += vocabulary.shift_for(self._layout(), first, seed)
        return vocabulary.background_for(first, seed) if self._place is None else ""

    def _layout(self) -> str:
        """The name that the recipe of the built-in model has for an arrangement."""
        things = list(self._things.values())
        if len(things) > 1:
            return "pair" if len(things) == 2 else "trio"
        count = things[0].count
        return {2: "two", 3: "three"}.get(count, "tiny" if things[0].size else self._position or "one")

    def _choose_styles(self, style: str) -> bool:
        """Choose the style of each thing; whether one of them, or a prompt without things and places, has it."""
        vocabulary = self._vocabulary
        if not self._things and self._place and style != vocabulary.styles[0]:
            self._leave_out(self._style_text)
            return False
        for thing in self._things.values():
            thing.style = vocabulary.style_for(thing.name, style)
            if thing.style != style and self._style:
                self._leave_out(f"{self._style_text} ({thing.name})")
        return not self._things or any(thing.style == style for thing in self._things.values())

    def _caption(self, added: str) -> str:
        """The prompt in the words of captions: things, their side, the place."""
        vocabulary = self._vocabulary
        things = [vocabulary.caption(each.name, each.count, each.size, each.style) for each in self._things.values()]
        words = [" and ".join(filter(None, (", ".join(things[:-1]), *things[-1:])))]
        if things and self._position:
            words.append(f"on the {self._position}")
        if place := self._place[0] if self._place else added:
            words.append(vocabulary.place_phrase(place))
        words += self._modifiers if things else []
        return " ".join(filter(None, words))

    def _nearest(self, words: str) -> str:
        return next(filter(None, map(self._vocabulary.nearest, [words, *words.split()])), "")


def message_for_nothing(suggestion: str) -> LazyMessage:
    """What to do when a model knows nothing of a prompt; `suggestion` is a model with its size."""
    if not suggestion:
        return LazyMessage("The built-in model knows none of these words. Use one of its things and places.")
    text = "The built-in model knows none of these words. For photos and anything else use {model}."
    return LazyMessage(text, model=suggestion)
