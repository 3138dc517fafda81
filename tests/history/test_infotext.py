from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from canvas.errors import InvalidInput
from canvas.history.infotext import read_infotext, write_infotext
from canvas.presets import PRESETS
from canvas.request import MAX_SEED, RESIZE_MODES, SCALES, TASKS, UPSCALERS, GenerationRequest
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

from .conftest import OLD_REQUEST, make_image

# Written by version 0.1, with its field names.
OLD_INFOTEXT = """\
a red fox, in snow
Negative prompt: blurry
Steps: 4, Sampler: LCM, CFG scale: 1.5, Seed: 7, Model: tiny, Denoising strength: 0.5, \
Image format: png, Quality: 95, Size: 512x384, Canvas task: "\\"inpaint\\"", \
Canvas image: "\\"ab.png\\"", Canvas mask_image: "\\"cd.png\\"", Canvas fit: "\\"pad\\"", \
Canvas background: "\\"#00ff7f\\"", Canvas mask_feather: 16, Canvas extend: "[8, 0, 16, 0]", \
Canvas mode: "\\"turbo\\"", Canvas where: "\\"huggingface\\"", Version: Magic Canvas"""

LINES = ["Negative prompt: x", "Steps: 20, Sampler: Euler, Seed: 1, Size: 8x8", "a, b: c", '"', " "]


def texts() -> st.SearchStrategy[str]:
    plain = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)
    lines = st.lists(st.sampled_from(LINES) | plain, max_size=4)
    return plain | lines.map("\n".join)


def lines() -> st.SearchStrategy[str]:
    return texts().filter(lambda text: "\n" not in text and 0 < len(text.strip()) <= 60)


def names() -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(["ab12.png", 'my picture, 1: "a".jpg'])


def sides() -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(8, 512).map(lambda eighth: eighth * 8)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    values: dict[str, Any] = {
        "prompt": draw(texts().filter(lambda text: text.strip())),
        "negative_prompt": draw(texts()),
        "style": draw(st.sampled_from(sorted(STYLES))),
        "model_key": draw(texts().filter(bool)),
        "width": draw(sides()),
        "height": draw(sides()),
        "num_inference_steps": draw(st.none() | st.integers(1, 150)),
        "guidance_scale": draw(st.none() | st.floats(0, 30)),
        "scheduler": draw(st.none() | st.sampled_from(sorted(SCHEDULERS))),
        "seed": draw(st.integers(-1, MAX_SEED - 16)),
        "num_images": draw(st.integers(1, 16)),
        "image_format": draw(st.sampled_from(["png", "jpeg", "webp"])),
        "quality": draw(st.integers(1, 100)),
        "task": draw(st.sampled_from(TASKS)),
        "image": draw(names()),
        "mask_image": draw(names()),
        "strength": draw(st.none() | st.floats(0.01, 1)),
        "resize_mode": draw(st.sampled_from(RESIZE_MODES)),
        "fill_color": draw(st.sampled_from(["#ffffff", "#00ff7f"])),
        "mask_blur": draw(st.integers(0, 256)),
        "only_masked": draw(st.booleans()),
        "outpaint": tuple(8 * draw(st.integers(0, 100)) for _ in range(4)),
        "variation_seed": draw(st.none() | st.integers(0, 2**50)),
        "variation_strength": draw(st.floats(0, 1)),
        "scale": draw(st.sampled_from(SCALES)),
        "upscaler": draw(st.sampled_from(UPSCALERS)),
        "loras": draw(st.lists(st.tuples(lines(), st.floats(-4, 4)), max_size=3).map(tuple)),
        "prompt_weighting": draw(st.booleans()),
        "watermark": draw(lines()),
        "preset": draw(st.sampled_from(sorted(PRESETS))),
    }
    return GenerationRequest(**values)


@pytest.mark.slow
@given(requests())
@example(GenerationRequest("a\nNegative prompt: b", "c\nNegative prompt: d"))
@example(GenerationRequest("Negative prompt: b"))
@example(GenerationRequest('Steps: 1, Seed: 2, Size: 8x8, x: "\\', model_key='a, "b": \\c\n'))
def test_requests_round_trip(request: GenerationRequest) -> None:
    parsed = read_infotext(write_infotext(replace(make_image(), request=request)))
    assert GenerationRequest.from_dict(parsed.values) == request
    assert parsed.warnings == ()


def test_old_field_names_are_read_and_new_ones_written() -> None:
    parsed = read_infotext(OLD_INFOTEXT)
    request = GenerationRequest.from_dict(parsed.values)
    assert parsed.warnings == ()
    assert request == OLD_REQUEST
    text = write_infotext(replace(make_image(), request=request))
    assert 'Canvas preset: "\\"turbo\\"", Canvas backend: "\\"hf-inference\\""' in text
    assert not re.search("Canvas (fit|background|mask_feather|extend|mode|where):", text)


def test_the_text_has_the_format_of_a1111() -> None:
    lines = write_infotext(make_image()).split("\n")
    assert lines[:2] == ["a red fox in the snow", "Negative prompt: blurry"]
    assert lines[2].startswith(
        "Steps: 15, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 64x72, Model: tiny, "
    )
    # Our own fields come last.
    assert re.search(
        "Version: Magic Canvas, Style: fantasy, Image format: png, Quality: 95(, Canvas [a-z_]+: [^,]+)*$", lines[2]
    )
    assert len(lines) == 3


def test_read_a1111_infotext_with_warnings() -> None:
    parsed = read_infotext(
        "masterpiece, (a fox:1.2)\nin the snow <lora:x:1>\r\n"
        "Negative prompt: bad\nvery bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, "
        "Size: 512x768, Model hash: 6ce0161689, Model: v1-5, Denoising strength: 0.6, "
        'Lora hashes: "x: 123, y: 456", Version: v1.10.1'
    )
    assert parsed.values == {
        "prompt": "masterpiece, (a fox:1.2)\nin the snow <lora:x:1>",
        "negative_prompt": "bad\nvery bad",
        "num_inference_steps": 20,
        "scheduler": "DPM++ 2M Karras",
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "model_key": "v1-5",
        "strength": 0.6,
        "prompt_weighting": True,
    }
    assert parsed.warnings == (
        "Lora hashes is not supported (got x: 123, y: 456).",
        "Prompt weights are switched on, as the prompt contains some.",
    )


SETTINGS = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 512x768, Version: v1.10.1"


@pytest.mark.parametrize("rest", ["Template: a __x__", "Time taken: 3.1 sec.\nused embeddings: y [12ab]"])
def test_lines_after_the_settings_are_named(rest: str) -> None:
    parsed = read_infotext(f"a fox\nNegative prompt: bad\n{SETTINGS}\n{rest}")
    assert (parsed.values["prompt"], parsed.values["negative_prompt"]) == ("a fox", "bad")
    assert (parsed.values["seed"], parsed.values["height"]) == (3, 768)
    assert parsed.warnings == (f'The text after the settings is not read: "{rest}".',)


def test_a_prompt_with_pairs_is_no_line_of_settings() -> None:
    text = "colours: red, mood: calm, light: soft\na fox"
    assert read_infotext(text).values == {"prompt": text}


@pytest.mark.parametrize("text", ['{"a": 1}', '[{"x": 2}]', '{"nodes": [', "{}"])
def test_json_is_no_prompt(text: str) -> None:
    parsed = read_infotext(text)
    assert parsed.values == {}
    assert parsed.warnings == ("The metadata is JSON in an unknown format, which cannot be read.",)


def test_weights_of_our_own_images_stay_as_they_were() -> None:
    for weighting in (False, True):
        request = GenerationRequest("a (fox:1.3)", prompt_weighting=weighting)
        parsed = read_infotext(write_infotext(replace(make_image(), request=request)))
        assert parsed.values.get("prompt_weighting", False) is weighting
        assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("pair", "warning"),
    [
        ("Steps: 9999", "Steps must be"),
        ("CFG scale: high", "Guidance must be"),
        ("Sampler: Heun", "Sampler"),
        ("Size: 511x512", "Width must be"),
        ("Seed: 99999999999999999999", "Seed must be"),
        ("Canvas strength of will: 1", "Canvas"),
        ("Canvas width: [[[", "Canvas"),
    ],
)
def test_invalid_values_become_warnings(pair: str, warning: str) -> None:
    parsed = read_infotext(f"a fox\n{pair}, Model: tiny, Quality: 90, Version: x")
    assert parsed.values["prompt"] == "a fox"
    assert len(parsed.warnings) == 1
    assert warning in parsed.warnings[0]


@pytest.mark.parametrize("text", ["", "a fox", "Negative prompt:", "a: b, c: d", "\n\n"])
def test_text_without_settings_is_prompt(text: str) -> None:
    assert set(read_infotext(text).values) <= {"prompt", "negative_prompt"}


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    values = read_infotext(text).values
    if values.get("prompt"):
        try:
            GenerationRequest.from_dict(values)
        except InvalidInput as error:
            assert error.field == "seed"  # the one bound that depends on another field


def test_the_line_of_settings_has_three_pairs_and_is_the_last_with_steps() -> None:
    assert read_infotext("a fox\nSteps: 20, Seed: 3").values == {"prompt": "a fox\nSteps: 20, Seed: 3"}
    assert read_infotext("Steps: 20, Seed: 3, Size: 64x72").values == {
        **{"num_inference_steps": 20, "seed": 3, "width": 64, "height": 72}
    }
    text = "a fox\nSteps: 5, Seed: 1, Size: 8x8\nan owl\nSteps: 6, Seed: 2, Size: 64x72\nmore"
    found = read_infotext(text)
    assert (found.values["num_inference_steps"], found.values["seed"]) == (6, 2)
    assert found.values["prompt"] == "a fox\nSteps: 5, Seed: 1, Size: 8x8\nan owl"


@pytest.mark.parametrize(
    ("pair", "values", "warnings"),
    [
        ("Sampler: PLMS", {"scheduler": "PNDM"}, 0),
        ("Sampler: Euler, Schedule type: Automatic", {"scheduler": "Euler"}, 0),
        ("Sampler: DPM++ 2M, Scheduler: Karras", {"scheduler": "DPM++ 2M Karras"}, 1),
        ("Sampler: Euler, Schedule type: Exponential", {}, 1),
        ("Denoising strength: 0.5", {"strength": 0.5}, 0),
        ("Denoising strength: 0.5, Hires upscale: 2", {}, 2),
        ("seed: 5", {"seed": 5}, 0),
        ('Model: "a, \\"b\\""', {"model_key": 'a, "b"'}, 0),
        ("Prompt length: 5", {}, 0),
        ("Size: 1 x", {}, 0),
        ("Canvas scale: 4", {"scale": 4}, 0),
        ("Canvas owner: 4", {}, 1),
        ("Canvas scale: {", {}, 1),
    ],
)
def test_pairs_are_read(pair: str, values: dict[str, Any], warnings: int) -> None:
    found = read_infotext(f"a fox\nSteps: 20, CFG scale: 7, {pair}, Version: x")
    assert found.values == {"prompt": "a fox", "num_inference_steps": 20, "guidance_scale": 7, **values}
    assert len(found.warnings) == warnings


@pytest.mark.parametrize(
    ("head", "length", "prompt", "negative_prompt"),
    [
        ("a fox\nNegative prompt: b", 5, "a fox", "b"),
        ("a\nNegative prompt: b", 20, "a\nNegative prompt: b", ""),
        ("a\nNegative prompt: b", 99, "a", "b"),
        ("a\nNegative prompt: b", "two", "a", "b"),
        ("a fox", 5, "a fox", ""),
        ("a fox in snow", 5, "a fox in snow", ""),
        ("Negative prompt: b", "", "", "b"),
    ],
)
def test_a_length_says_where_the_prompt_ends(head: str, length: object, prompt: str, negative_prompt: str) -> None:
    values = read_infotext(f"{head}\nSteps: 20, Seed: 3, Prompt length: {length}, Version: x").values
    assert (values.get("prompt", ""), values.get("negative_prompt", "")) == (prompt, negative_prompt)


def test_the_length_is_written_only_for_ambiguous_prompts() -> None:
    for prompt, written in (("a fox", False), ("a fox\nNegative prompt: b", True)):
        text = write_infotext(replace(make_image(), request=GenerationRequest(prompt, model_key="tiny")))
        assert ("Prompt length" in text) is written


def test_fooocus_ignores_its_own_keys() -> None:
    line = "Steps: 20, Seed: 3, Performance: Speed, User: me, Version: {}"
    fooocus, other = (read_infotext(f"a fox\n{line.format(version)}") for version in ("Fooocus v2.5", "v1.10"))
    assert (fooocus.program, fooocus.warnings) == ("Fooocus", ())
    assert (other.program, len(other.warnings)) == ("A1111", 2)


def test_long_values_are_shortened_in_warnings() -> None:
    for length, shown in ((60, "x" * 60), (61, "x" * 50 + "…")):
        found = read_infotext(f"a fox\nSteps: 20, Seed: 3, Hashes: {'x' * length}")
        assert found.warnings == (f"Hashes is not supported (got {shown}).",)


def test_a_size_is_written_when_both_sides_are_known() -> None:
    for width, height, written in ((64, 72, True), (64, None, False), (None, 72, False), (None, None, False)):
        request = GenerationRequest("a fox", width=width, height=height)
        text = write_infotext(replace(make_image(), request=request))
        assert ("Size: 64x72" in text) is written
        assert GenerationRequest.from_dict(read_infotext(text).values) == request
