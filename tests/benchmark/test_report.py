"""Measured figures as a terminal and the README show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.benchmark import report
from canvas.benchmark.runner import BenchmarkReport, Result
from canvas.errors import CanvasError

REPORT = BenchmarkReport(
    model="starter",
    size=128,
    machine="A processor",
    cores=2,
    device="cpu",
    dtype="bfloat16",
    rows=(
        Result("plain diffusers", 25, 1.5, 0.06, 1.0),
        Result("quality", 12, 0.5, 0.04, 3.0, 500_000_000, 1.0, 99.0),
    ),
    added_up=False,
    turns=5,
    ceiling_teraflops=0.912,
    unet_teraflops=0.00456,
    own_share=0.0812,
)


def test_small_speeds_keep_their_digits() -> None:
    text = "\n".join(report.format_table(REPORT))
    assert "0.00456 of 0.912 TFLOPS" in text
    assert "Quality spends 8.1%" in text
    assert "0.50 GB" in text


def test_a_gpu_has_a_name_and_no_cores() -> None:
    report = replace(REPORT, device="cuda", machine="A GPU")
    assert "on A GPU; whole pictures" in report.format_table(report)[0]


def test_what_json_told_elsewhere_is_read_again() -> None:
    told = json.loads(json.dumps(REPORT.to_dict()))
    assert BenchmarkReport.from_dict(told) == REPORT


def test_lines_say_how_it_was_measured() -> None:
    head, _, plain, quality, own, ceiling = report.format_table(replace(REPORT, added_up=True))
    assert "added up" in head
    assert "3.00" in quality
    assert plain.split()[-1] == "1.00"
    assert "at most 8.1%" in own
    assert "0%" in ceiling


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# A\n{report.BEGIN}\nold\n{report.END}\nend\n")
    for _ in range(2):
        report.replace_marked_section(path, report.format_markdown([REPORT]))
    text = path.read_text()
    assert text.startswith("# A\n")
    assert text.endswith("\nend\n")
    assert "old" not in text
    assert text.count("| quality | 12 | 0.50 | 3.00 | 0.50 GB | 1.000 |") == 1
    assert "A processor (2 cores)" in text


def test_missing_marks_are_said(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A\n")
    with pytest.raises(CanvasError, match="lacks the lines"):
        report.replace_marked_section(path, "")
    assert path.read_text() == "# A\n"
