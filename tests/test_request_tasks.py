from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.request import img2img_steps


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (20, 0.9, (20, 18)),
        (30, 0.75, (30, 22)),  # as diffusers counts
        (20, 1.0, (20, 20)),
        (20, 0.01, (100, 1)),
        (4, 0.5, (4, 2)),
        (4, 0.6, (5, 3)),  # two of four would begin at a half
        (4, 0.88, (5, 4)),  # three of four would begin at three quarters
        (4, 0.95, (4, 4)),
        (4, 0.1, (10, 1)),
        (1, 0.6, (2, 1)),
    ],
)
def test_few_steps_begin_where_the_strength_says(
    steps: int, strength: float, expected: tuple[int, int]
) -> None:
    assert img2img_steps(steps, strength) == expected


@given(st.integers(4, 150), st.floats(0.01, 1))
def test_a_schedule_is_near_the_strength_and_never_longer_than_asked(
    steps: int, strength: float
) -> None:
    whole, done = img2img_steps(steps, strength)
    assert 1 <= done <= steps
    assert done <= whole
    assert abs(done / whole - strength) <= 0.1 + 1e-9
