"""Benchmarks of the built-in model; the results must be consistent."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from canvas.benchmark import runner
from canvas.benchmark.memory import peak_memory
from canvas.benchmark.model_under_test import load_benchmark_model
from canvas.benchmark.runner import BenchmarkReport, run_benchmark
from canvas.benchmark.synthetic_models import UNET, synthetic_spec
from canvas.catalog import MODELS
from canvas.engine.device import Device
from canvas.presets import PRESETS

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
NAMES = [runner.BASELINE, runner.SLICED, *PRESETS]


@pytest.fixture(scope="module")
def report() -> BenchmarkReport:
    return run_benchmark(STARTER, CPU, size=128, rounds=1, memory=False, full=True)


@pytest.mark.slow
def test_report_has_a_row_per_variant(report: BenchmarkReport) -> None:
    assert [row.name for row in report.rows] == NAMES
    assert [row.steps for row in report.rows] == [25, 20, 2, 1, 1]
    assert not report.extrapolated
    for row in report.rows:
        assert row.seconds > 0
        assert row.seconds_per_step == pytest.approx(row.seconds / row.steps)
        assert row.ratio == pytest.approx(report.rows[0].seconds / row.seconds)


@pytest.mark.slow
def test_similarity_is_measured_for_presets(report: BenchmarkReport) -> None:
    baseline, sliced, quality, balanced, turbo = report.rows
    assert baseline.ssim is None
    assert sliced.ssim is None
    assert quality.ssim == pytest.approx(1)
    assert quality.psnr == math.inf
    assert balanced.ssim is not None
    assert turbo.ssim is not None
    assert 0.5 < turbo.ssim <= balanced.ssim < 1


@pytest.mark.slow
def test_unet_speed_is_relative_to_matrix_products(report: BenchmarkReport) -> None:
    assert report.peak_tflops > 0
    assert report.peak_ratio == report.unet_tflops / report.peak_tflops
    assert json.loads(json.dumps(report.to_dict()))["share_of_ceiling"] > 0


@pytest.mark.slow
def test_overhead_is_a_ratio(report: BenchmarkReport) -> None:
    assert 0 < report.overhead_ratio < 1


@pytest.mark.slow
def test_long_images_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_SECONDS", 0.0)
    report = run_benchmark(STARTER, CPU, size=128, rounds=1, memory=False)
    assert report.extrapolated
    assert [row.name for row in report.rows] == NAMES
    assert all(row.ssim is None and row.seconds > 0 for row in report.rows)


@pytest.mark.long
@pytest.mark.parametrize("full", [True, False])
def test_openvino_has_rows_of_its_own(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    monkeypatch.setattr(runner, "MAX_SECONDS", 0.0)
    report = run_benchmark(STARTER, CPU, size=128, rounds=1, memory=False, full=full, openvino=True)
    names = [name for preset in PRESETS for name in (preset, f"{preset}, OpenVINO")]
    assert [row.name for row in report.rows] == [*NAMES[:2], *names]
    assert all(row.seconds > 0 for row in report.rows)
    if full:
        similar = next(row.psnr for row in report.rows if row.name == "quality, OpenVINO")
        assert similar is not None
        assert 40 <= similar < math.inf


@pytest.mark.long
def test_memory_is_that_of_a_new_process() -> None:
    ballast = torch.ones(150_000_000)  # 600 MB in this process only
    peak = peak_memory(STARTER, CPU, 128, "optimized")
    assert peak is not None
    assert 100e6 < peak < 2e9
    del ballast


def test_synthetic_model_has_the_size_of_the_real_one() -> None:
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = UNET
    with torch.device("meta"):
        unet = UNet2DConditionModel(**options)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert synthetic_spec().resolution == 512


def test_only_the_requested_pipeline_is_loaded() -> None:
    model = load_benchmark_model(STARTER, CPU, baseline=False)
    assert model.baseline is None
    assert model.optimized is not None
