from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def images_per_second(folder: Path, workers: int) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.throughput", str(folder), str(workers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_workers_are_nearly_twice_as_fast(tmp_path: Path) -> None:
    """One worker on one core, two on two, alternating; needs an idle machine."""
    ratios = []
    for turn in range(3):
        one, two = (images_per_second(tmp_path / f"{turn}{n}", n) for n in (1, 2))
        ratios.append(two / one)
        sys.stdout.write(f"1: {one:.2f}, 2: {two:.2f} images per second\n")
    assert median(ratios) >= 1.8, ratios
