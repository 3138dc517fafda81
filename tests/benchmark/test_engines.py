"""The comparison of the engines, with the built-in model."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvas.benchmark.command import ENGINE_PARTS
from canvas.benchmark.engines import PARTS, Measurement, measure_starter
from canvas.engine.device import Device


@pytest.mark.parametrize(
    ("bounds", "is_met"), [({}, None), ({"at_least": 2.0}, True), ({"at_least": 3.0}, False), ({"at_most": 2.0}, False)]
)
def test_a_measurement_knows_whether_it_keeps_its_bound(bounds: dict[str, float], is_met: bool | None) -> None:
    measurement = Measurement("pass", 2.5, "s", **bounds)
    assert measurement.is_met is is_met
    assert measurement.to_dict()["is_met"] is is_met


@pytest.mark.long
def test_the_built_in_model_is_measured_with_both_engines(tmp_path: Path) -> None:
    rows = {each.name: each for each in measure_starter(tmp_path, Device("cpu", "float32", "test"), 1)}
    for preset in ("quality", "balanced", "turbo"):
        ratio = rows[f"starter, {preset}: OpenVINO"].value / rows[f"starter, {preset}: PyTorch"].value
        assert rows[f"starter, {preset}: OpenVINO / PyTorch"].value == pytest.approx(ratio)
        assert rows[f"starter, {preset}: similarity of OpenVINO to PyTorch"].value >= 40
        for engine in ("PyTorch", "OpenVINO"):
            row = rows[f"starter, {preset}: similarity of {engine} to plain diffusers"]
            assert row.unit == "dB" and row.value >= (45 if preset == "quality" else 10)
    assert tuple(PARTS) == ENGINE_PARTS
