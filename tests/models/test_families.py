"""The table of families: it agrees with diffusers, and with the documentation."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from canvas.catalog import ASSETS
from canvas.errors import ModelUnsupported
from canvas.models import capabilities
from canvas.models.families import BY_CLASS, DISTILLED_NAMES, FAMILIES, UNSUPPORTED, Family
from tests.tiny_families import BUILDERS, make_tiny

DOCUMENT = ASSETS / "MODELS.md"
IDS = [family.key for family in FAMILIES]
HEADER = """# Families of models

What a model can do is read from its `model_index.json`, its configurations and, of a single file, its
keys. This table is made from `canvas/models/families.py` by `tests/models/test_families.py`. Families
with an entry in the last column pass `tests/engine/test_families.py` as tiny pipelines in their true
layout: download, text to image, image to image and inpainting or a refusal, sizes, previews, stop
within a step, NaN, the same image twice, a LoRA, and a record of what acted, in float32 and bfloat16. The
others only agree with the signatures in diffusers.

| family | tasks | dtypes, the best first | negative prompt | guidance | schedulers | tokens | LoRA \
| size, a multiple of | steps | tested as |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def signature(class_name: str) -> Any:
    import diffusers

    return inspect.signature(getattr(diffusers, class_name).__call__).parameters


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_the_classes_take_what_the_table_says(family: Family) -> None:
    for class_name in family.tasks.values():
        known = signature(class_name)
        assert family.guidance_argument in known
        assert {"prompt", "generator", "num_inference_steps", "output_type"} <= known.keys()
        if family.negative_prompt:
            assert "negative_prompt" in known
    if family.image_to_image:
        assert "image" in signature(family.image_to_image)
        assert ("strength" in signature(family.image_to_image)) == family.strength
    if family.inpaint:
        assert {"image", "mask_image"} <= signature(family.inpaint).keys()


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_loras_are_those_that_diffusers_loads(family: Family) -> None:
    import diffusers

    assert not family.lora or hasattr(getattr(diffusers, family.text_to_image), "load_lora_weights")


def test_no_class_has_two_families() -> None:
    classes = [name for family in FAMILIES for name in set(family.tasks.values())]
    assert len(classes) == len(set(classes)) == len(BY_CLASS)
    assert not set(classes) & UNSUPPORTED.keys()


@pytest.mark.parametrize("class_name", [*UNSUPPORTED, "WanPipeline", ""])
def test_other_pipelines_are_refused_with_a_reason(class_name: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        capabilities.read_capabilities({"_class_name": class_name}, {}, "org/model")
    assert "org/model" in str(caught.value)
    assert str(UNSUPPORTED.get(class_name, "It runs Stable Diffusion")) in str(caught.value)


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_capabilities_before_the_download_agree_with_the_folder(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    index = json.loads((folder / "model_index.json").read_text())
    before = capabilities.read_capabilities(index, {}, family)
    after = capabilities.read_folder(folder, family)
    for name in ("pipelines", "dtypes", "prompt_tokens", "tokenizer", "steps"):
        assert getattr(before, name) == getattr(after, name), name


@pytest.mark.parametrize(
    ("family", "preferred", "has_bfloat16", "expected"),
    [
        ("z-image-turbo", "float16", True, "bfloat16"),  # black images in float16
        ("z-image-turbo", "float16", False, "float32"),
        ("sd15", "float16", False, "float16"),
        ("sdxs", "float16", True, "bfloat16"),
    ],
)
def test_the_dtype_is_one_that_gives_images(
    family: str, preferred: str, has_bfloat16: bool, expected: str, tmp_path: Path
) -> None:
    read = capabilities.read_folder(make_tiny(family, tmp_path / family))
    assert read.choose_dtype(preferred, has_bfloat16=has_bfloat16) == expected


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_only_flux_klein_edits_by_instruction(family: Family) -> None:
    read = capabilities.read_capabilities({"_class_name": family.text_to_image}, {})
    assert read.edits_by_instruction == (family.key == "flux2_klein")


def name_in_tests(family: Family) -> str:
    classes = {
        "stable_diffusion": ("sd15", "sd21-v", "sdxs"),
        "stable_diffusion_xl": ("sdxl", "sdxl-turbo"),
        "stable_diffusion_3": ("sd3",),
        "flux": ("flux-dev", "flux-schnell"),
        "z_image": ("z-image-turbo",),
    }
    own = classes.get(family.key, (family.key.replace("_", "-"),))
    return ", ".join(name for name in own if name in BUILDERS)


def can_be_distilled(family: Family) -> bool:
    return family.key in (*DISTILLED_NAMES, "flux2_klein")


def table_row(family: Family) -> str:
    cells = (
        family.label,
        ", ".join(name.replace("_", " ") for name in family.tasks),
        ", ".join(family.dtypes),
        "yes" if family.negative_prompt else "no",
        {"cfg": "yes", "embedded": "yes, in one pass", "none": "no"}[family.guidance],
        {"any": "all", "lcm": "LCM", "own": "the model's own"}[family.schedulers],
        str(family.tokens or "-"),
        "yes" if family.lora else "no",
        f"{family.resolution}, {family.size_step}",
        f"{family.steps}, distilled {family.distilled[0]}" if can_be_distilled(family) else str(family.steps),
        name_in_tests(family) or "-",
    )
    return f"| {' | '.join(cells)} |"


def test_the_document_has_this_table() -> None:
    expected = HEADER + "\n".join(table_row(family) for family in FAMILIES) + "\n"
    assert DOCUMENT.read_text(encoding="utf-8") == expected
