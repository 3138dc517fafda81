from __future__ import annotations

from dataclasses import replace

import pytest

from canvas import MODELS
from canvas.errors import LazyMessage
from canvas.model_status import SUGGESTED, ModelStatus, best_suggestion

FREE = 10**11


def test_the_text_before_a_download() -> None:
    status = ModelStatus("small", "hub", 4_300_000_000, FREE, MODELS["small"], seconds=90.0)
    assert status.text == (
        "4.3 GB download, 6 min at 100 Mbit/s (100.0 GB disk space free) · licence "
        "creativeml-openrail-m · native 512 × 512 · about 2 min per image on this computer"
    )


def test_the_size_is_that_of_the_catalog_until_the_hub_is_asked() -> None:
    status = ModelStatus("tiny", "hub", None, FREE, MODELS["tiny"], seconds=None)
    assert status.text.startswith("3.2 GB download (100.0 GB disk space free) · licence openrail")


def test_the_text_of_a_model_on_disk() -> None:
    status = ModelStatus("tiny", "disk", None, FREE, MODELS["tiny"], seconds=None)
    assert status.text == "on disk · native 512 × 512"


def test_the_text_says_how_a_large_model_is_loaded() -> None:
    memory = LazyMessage("int8, {peak} of {total}", peak="5.9 GB", total="16.0 GB")
    status = ModelStatus("flux-klein", "disk", None, FREE, MODELS["flux-klein"], 180.0, memory)
    assert status.text == (
        "on disk · native 512 × 512 · memory: int8, 5.9 GB of 16.0 GB · about 3 min per image on this computer"
    )


@pytest.mark.parametrize(
    ("memory", "free", "seconds", "expected"),
    [
        (64 * 10**9, FREE, 2.0, "z-image"),
        (64 * 10**9, FREE, 60.0, "sdxs"),  # none is quick: the smallest
        (64 * 10**9, FREE, None, "sdxs"),
        (6 * 10**9, FREE, 2.0, "dreamshaper"),
        (64 * 10**9, 4 * 10**9, 2.0, "sdxs"),
        (10**9, FREE, 2.0, None),
    ],
)
def test_the_best_model_that_fits_is_suggested(
    memory: int, free: int, seconds: float | None, expected: str | None
) -> None:
    candidates = [ModelStatus(key, "hub", None, free, MODELS[key], seconds) for key in SUGGESTED]
    status = best_suggestion(candidates, memory)
    assert (status.key if status else None) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [("1.5 GB", 1_500_000_000), ("300 MB", 300_000_000), ("", 0), ("large", 0)]
)
def test_the_size_of_the_catalog_is_read(size: str, expected: int) -> None:
    spec = replace(MODELS["tiny"], size=size)
    assert ModelStatus("tiny", "hub", None, FREE, spec, None).catalog_bytes == expected


def test_a_brief_text_leaves_out_size_and_seconds() -> None:
    memory = LazyMessage("int8")
    status = ModelStatus("tiny", "memory", None, FREE, MODELS["tiny"], 2.0, memory)
    assert status.parts(brief=True) == ["in memory", "memory: int8"]
    assert status.parts() == ["in memory", "native 512 × 512", "memory: int8", "about 2.0 s per image on this computer"]


def test_a_model_without_size_or_licence_has_a_shorter_text() -> None:
    status = ModelStatus("tiny", "hub", None, FREE, replace(MODELS["tiny"], size="", license=""), None)
    assert status.text == "Download (100.0 GB disk space free) · native 512 × 512"


@pytest.mark.parametrize(("memory", "free", "fits"), [(1, 0, True), (0, 0, False), (1, -1, False)])
def test_a_model_needs_more_memory_than_its_size_and_some_space_beside_it(memory: int, free: int, fits: bool) -> None:
    """Of which 2 GB stay free."""
    spec = replace(MODELS["tiny"], size="3.0 GB")
    status = ModelStatus("tiny", "hub", None, 5 * 10**9 + 1 + free, spec, None)
    assert (best_suggestion([status], 3 * 10**9 + memory) is status) == fits


@pytest.mark.parametrize(("seconds", "expected"), [(15.0, 0), (15.1, 1)])
def test_a_suggested_image_may_take_fifteen_seconds(seconds: float, expected: int) -> None:
    statuses = [ModelStatus("sdxs", "hub", None, FREE, MODELS["sdxs"], each) for each in (seconds, None)]
    assert best_suggestion(statuses, FREE) is statuses[expected]
