"""Fuzz what reads bytes from outside: short with hypothesis, long with atheris, and all finds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.resilience.conftest import Tell
from tests.resilience.consistency import ROOT
from tests.resilience.fuzzing import FINDS, TARGETS, try_

SECONDS = 15  # a target, in the long form


@st.composite
def mutated(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with a few pieces replaced, repeated or cut out."""
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


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_from_outside_breaks_a_reader(name: str) -> None:
    seed = TARGETS[name][1]
    TARGETS[name][0](seed)  # the seed itself is good, or nothing is tried

    @settings(
        max_examples=60 if name == "archive" else 150,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seed) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        try_(name, data)

    check()


FOUND = sorted(path for path in FINDS.rglob("*") if path.is_file())


@pytest.mark.parametrize("find", FOUND, ids=[f"{one.parent.name}-{one.name[:20]}" for one in FOUND])
def test_what_was_found_once_is_mended(find: Path) -> None:
    try_(find.parent.name, find.read_bytes())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_readers_under_atheris(report: Tell) -> None:
    pytest.importorskip("atheris", reason="pip install atheris, on Linux with Python 3.11 to 3.13")
    tried: dict[str, int] = {}
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.resilience.fuzzing", name, str(SECONDS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        assert counted, done.stderr[-1000:]
        tried[name] = int(counted[1])
    report(
        f"atheris on {', '.join(tried)}, {SECONDS} s each",
        sum(tried.values()),
        "inputs",
        "nothing found",
    )
