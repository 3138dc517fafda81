"""The benchmark runs, and its figures fit together."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from canvas.benchmark import runner
from canvas.benchmark.model_under_test import load_subject
from canvas.benchmark.peak_memory import peak_memory
from canvas.benchmark.runner import BenchmarkReport, run_benchmark
from canvas.benchmark.synthetic_models import UNET, synthetic_spec
from canvas.catalog import MODELS
from canvas.engine.device import Device
from canvas.presets import PRESETS

CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]
NAMES = [runner.PLAIN, runner.ORIGINAL_SCRIPT, *PRESETS]


@pytest.fixture(scope="module")
def report() -> BenchmarkReport:
    return run_benchmark(STARTER, CPU, size=128, turns=1, memory=False, full=True)


def test_rows_are_those_of_the_table(report: BenchmarkReport) -> None:
    assert [row.name for row in report.rows] == NAMES
    assert [row.steps for row in report.rows] == [25, 20, 4, 2, 1]
    assert not report.added_up
    for row in report.rows:
        assert row.seconds > 0
        assert row.seconds_per_step == pytest.approx(row.seconds / row.steps)
        assert row.ratio == pytest.approx(report.rows[0].seconds / row.seconds)


def test_likeness_is_told_of_the_modes(report: BenchmarkReport) -> None:
    plain, original, quality, balanced, turbo = report.rows
    assert plain.ssim is None
    assert original.ssim is None
    assert quality.ssim == pytest.approx(1)
    assert quality.psnr == math.inf
    assert balanced.ssim is not None
    assert turbo.ssim is not None
    assert 0.5 < turbo.ssim <= balanced.ssim < 1


def test_speed_is_a_share_of_the_ceiling(report: BenchmarkReport) -> None:
    assert report.ceiling_teraflops > 0
    assert report.share_of_ceiling == report.unet_teraflops / report.ceiling_teraflops
    assert json.loads(json.dumps(report.to_dict()))["share_of_ceiling"] > 0


def test_our_own_share_is_what_is_left_of_the_whole(report: BenchmarkReport) -> None:
    assert 0 < report.own_share < 1


def test_long_pictures_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TOO_LONG", 0.0)
    report = run_benchmark(STARTER, CPU, size=128, turns=1, memory=False)
    assert report.added_up
    assert [row.name for row in report.rows] == NAMES
    assert all(row.ssim is None and row.seconds > 0 for row in report.rows)


def test_memory_is_that_of_a_fresh_process() -> None:
    ballast = torch.ones(150_000_000)  # 600 MB that the child must not count
    peak = peak_memory(STARTER, CPU, 128, "ours")
    assert peak is not None
    assert 100e6 < peak < 2e9
    del ballast


def test_the_synthetic_model_has_the_size_of_the_real_one() -> None:
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = UNET
    with torch.device("meta"):
        unet = UNet2DConditionModel(**options)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert synthetic_spec().resolution == 512


def test_a_subject_loads_only_what_is_asked() -> None:
    subject = load_subject(STARTER, CPU, plain=False)
    assert subject.plain is None
    assert subject.ours is not None
