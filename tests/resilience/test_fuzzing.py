"""Fuzz parsers of untrusted input: with hypothesis, with atheris (long), and with old crashes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.resilience.conftest import Report
from tests.resilience.consistency import ROOT
from tests.resilience.fuzzing import CORPUS, TARGETS, run_target

SECONDS = 15  # per target with atheris


@st.composite
def mutated(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with a few slices replaced, repeated or removed."""
    data = seed
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.binary(max_size=12)
            | st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace"))
            | st.just(data[start:stop] * 3)
            | st.sampled_from([b"0" * 400, b"1e999", b"\xff" * 8, b"[" * 500, b"NaN", b"\0"])
        )
        data = data[:start] + piece + data[stop:]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_parsers_raise_only_canvas_errors(name: str) -> None:
    seed = TARGETS[name][1]
    TARGETS[name][0](seed)  # the seed is valid, so mutations reach deep code

    @settings(
        max_examples=60 if name == "archive" else 150,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seed) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        run_target(name, data)

    check()


CRASHES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", CRASHES, ids=[f"{one.parent.name}-{one.name}" for one in CRASHES])
def test_earlier_crashes_are_fixed(path: Path) -> None:
    run_target(path.parent.name, path.read_bytes())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_parsers_with_atheris(report: Report) -> None:
    pytest.importorskip("atheris", reason="pip install atheris, on Linux with Python 3.11 to 3.13")
    executions: dict[str, int] = {}
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.resilience.fuzzing", name, str(SECONDS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        assert counted, done.stderr[-1000:]
        executions[name] = int(counted[1])
    report(f"atheris on {', '.join(executions)}, {SECONDS} s each", sum(executions.values()), "inputs", "no crash")
