from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from canvas.engine.device import Device
from canvas.engine.safety import CHECKER, CHECKER_FILES, ImageSafetyChecker, check_prompt, find_checker
from canvas.errors import ContentBlocked, ModelCorrupted
from canvas.models.hub_client import Hub

CPU = Device("cpu", "float32", "test")


@pytest.mark.parametrize(
    "prompt",
    [
        "a skilled hunter in Essex",
        "a class of assassins analysing a cockpit in Scunthorpe",
        "shiitake mushrooms, pussy willow, great tit on a branch",
        "she is hit by rain",
        "a red fox in the snow, 3d",
    ],
)
def test_harmless_words_pass(prompt: str) -> None:
    check_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("a nude woman", "nude"), ("a (naked:1.3) man", "naked"), ("NSFW, a beach", "nsfw"), ("p.o.r.n", "porn")],
)
def test_blocked_words_are_named(prompt: str, word: str) -> None:
    with pytest.raises(ContentBlocked, match=f"“{word}”"):
        check_prompt(prompt)


@pytest.fixture
def checker(tmp_path: Path) -> Any:
    """The real class with tiny random weights and thresholds set by the test."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)

    def with_threshold(value: float) -> ImageSafetyChecker:
        with torch.no_grad():
            model.concept_embeds_weights.fill_(value)
            model.special_care_embeds_weights.fill_(2)
        model.save_pretrained(tmp_path)
        return ImageSafetyChecker(CPU, tmp_path)

    return with_threshold


def test_flagged_image_is_blocked(checker: Any) -> None:
    with pytest.raises(ContentBlocked, match="not stored"):
        checker(-2).check(Image.radial_gradient("L").convert("RGB"))


def test_other_image_passes(checker: Any) -> None:
    checker(2).check(Image.radial_gradient("L").convert("RGB"))


def test_unreadable_checker_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupted, match="CANVAS_SAFETY=prompt"):
        ImageSafetyChecker(CPU, tmp_path).check(Image.new("RGB", (64, 64)))


def test_a_checker_that_was_deleted_is_reported() -> None:
    with pytest.raises(ModelCorrupted, match="was deleted"):
        ImageSafetyChecker(CPU, None)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([*CHECKER_FILES, "model.safetensors"], True),
        ([*CHECKER_FILES, "pytorch_model.bin", "README.md"], True),
        (CHECKER_FILES, False),
        ([CHECKER_FILES[0], "model.safetensors"], False),
        ([], False),
    ],
)
def test_a_checker_in_the_cache_is_found_if_it_is_complete(tmp_path: Path, names: list[str], found: bool) -> None:
    hub = Hub(cache_dir=tmp_path)
    assert find_checker(hub=hub) is None
    folder = hub.repo_folder(CHECKER) / "snapshots" / "1234"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")
    assert find_checker(hub=hub) == (folder if found else None)
