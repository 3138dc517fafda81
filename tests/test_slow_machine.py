"""A CPU without 16-bit units: everything works in float32, and the page shows why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas import GenerationRequest, Studio
from canvas.engine.device import detect_device
from canvas.presets import PRESETS
from canvas.settings import Settings
from canvas.ui.html_panel import render


@pytest.fixture(params=["measured", "requested"])
def slow_studio(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Studio, str]]:
    """A studio where bfloat16 was measured to be slow or float32 requested, and the reason."""
    cache = tmp_path / "cache"
    detect_device(cache, "cpu")  # writes the measurements of this machine
    path = cache / "speeds.json"
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: {"float32": 0.01, "bfloat16": 0.03, "layer": 1e-5}}))
    settings = Settings(data_dir=tmp_path, cache_dir=cache, device="cpu", engine="torch")
    reason = "bfloat16 takes 3.0 times as long as float32"
    if request.param == "requested":
        settings, reason = settings.model_copy(update={"dtype": "float32"}), "float32 as requested"
    with Studio(settings) as studio:
        yield studio, reason


@pytest.mark.slow
def test_every_preset_works_and_the_page_shows_why(slow_studio: tuple[Studio, str]) -> None:
    studio, reason = slow_studio
    for preset in PRESETS:
        request = GenerationRequest("a fox", seed=1, preset=preset, num_inference_steps=2)
        [image] = studio.generate(request)
        assert (image.device, image.dtype) == ("cpu", "float32")
    page = render("models.html", groups={}, device=studio.device_if_known, workers=[], public=False)
    assert reason in page
    assert studio.estimate(GenerationRequest("a fox", preset="turbo"))
