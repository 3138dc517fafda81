"""Benchmark results as a table and as Markdown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.benchmark import engines, runner
from canvas.benchmark.engines import Measurement
from canvas.benchmark.runner import OLD_FIELD_NAMES, BenchmarkReport, Result
from canvas.errors import CanvasError

REPORT = BenchmarkReport(
    model="starter",
    size=128,
    machine="A processor",
    cores=2,
    device="cpu",
    dtype="bfloat16",
    rows=(Result("plain diffusers", 25, 1.5, 0.06, 1.0), Result("quality", 12, 0.5, 0.04, 3.0, 500_000_000, 1.0, 99.0)),
    extrapolated=False,
    rounds=5,
    peak_tflops=0.912,
    unet_tflops=0.00456,
    overhead_ratio=0.0812,
)


def test_small_speeds_have_three_digits() -> None:
    text = "\n".join(runner.format_table(REPORT))
    assert "0.00456 of 0.912 TFLOPS" in text
    assert "and VAE: 8.1%" in text
    assert "0.50 GB" in text


def test_cores_are_shown_for_a_cpu_only() -> None:
    on_gpu = replace(REPORT, device="cuda", machine="A GPU")
    assert "on A GPU; whole images" in runner.format_table(on_gpu)[0]
    assert "(2 cores)" in runner.format_table(REPORT)[0]


def test_json_report_is_read_again() -> None:
    assert BenchmarkReport.from_dict(json.loads(json.dumps(REPORT.to_dict()))) == REPORT


def test_json_report_with_old_field_names_is_read() -> None:
    values = {old: REPORT.to_dict()[old] for old in OLD_FIELD_NAMES}
    current = set(OLD_FIELD_NAMES.values())
    values |= {name: value for name, value in REPORT.to_dict().items() if name not in current}
    assert BenchmarkReport.from_dict(values) == REPORT


def test_table_shows_the_method() -> None:
    head, _, plain, quality, overhead, unet = runner.format_table(replace(REPORT, extrapolated=True))
    assert "extrapolated" in head
    assert "3.00" in quality
    assert plain.split()[-1] == "1.00"
    assert "at most 8.1%" in overhead
    assert "0%" in unet


def test_only_the_marked_section_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# A\n{runner.README_BEGIN}\nold\n{runner.README_END}\nend\n")
    for _ in range(2):
        runner.replace_marked_section(path, runner.format_markdown([REPORT]))
    text = path.read_text()
    assert text.startswith("# A\n")
    assert text.endswith("\nend\n")
    assert "old" not in text
    assert text.count("| 1.50 s (1.0×) | 0.50 s (3.0×) |") == 1
    assert "A processor (2 cores)" in text


def test_the_passes_of_the_engines_are_one_sentence(tmp_path: Path) -> None:
    rows = [
        Measurement("guided pass: plain diffusers, float32", 8.1, "s"),
        Measurement("guided pass: OpenVINO, int8", 1.41, "s"),
        Measurement("int8 / plain", 5.7, "×", at_least=5.0),
        Measurement("similarity of the prediction: OpenVINO, int8", 31.6, "dB"),
    ]
    text = engines.format_engines(rows, "A processor (2 cores)")
    assert "on A processor (2 cores)" in text
    assert text.endswith(": plain diffusers, float32 8.10 s; OpenVINO, int8 1.41 s (32 dB).")
    assert engines.format_engines(rows[2:], "A processor") == ""
    path = tmp_path / "README.md"
    path.write_text(f"before {engines.README_BEGIN}{engines.README_END} after\n")
    runner.replace_marked_section(path, text, engines.README_BEGIN, engines.README_END)
    assert path.read_text() == f"before {engines.README_BEGIN}{text}{engines.README_END} after\n"


def test_missing_marks_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A\n")
    with pytest.raises(CanvasError, match="must contain"):
        runner.replace_marked_section(path, "")
    assert path.read_text() == "# A\n"
