"""Sizes, durations and progress as text."""

from __future__ import annotations

import pytest

from canvas.formatting import format_bytes, format_duration, format_progress, format_traceback
from canvas.models.download import DownloadProgress
from canvas.request import ProgressUpdate


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 kB"),
        (2_400, "2 kB"),
        (999_000, "999 kB"),
        (10**6, "1.0 MB"),
        (2_500_000, "2.5 MB"),
        (10**9, "1.0 GB"),
        (4_300_000_000, "4.3 GB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.04, "0.04 s"),
        (0.1, "0.1 s"),
        (4.25, "4.2 s"),
        (9.4, "9.4 s"),
        (10, "10 s"),
        (59, "59 s"),
        (60, "1 min"),
        (200, "3 min"),
    ],
)
def test_a_duration_is_as_precise_as_it_is_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (None, (0.0, "running")),
        (ProgressUpdate(2, 8), (0.25, "step 2 of 8")),
        (ProgressUpdate(2, 4, 1, 2, 4.2), (0.75, "image 2 of 2, step 2 of 4, 4.2 s left")),
        (DownloadProgress(10**6, 4 * 10**6, 500_000.0, 6.0), (0.25, "1.0 MB of 4.0 MB, 500 kB/s, 6.0 s left")),
        (DownloadProgress(0, 0, 0.0, None), (1.0, "0 kB of 0 kB, 0 kB/s")),
    ],
)
def test_progress_is_a_fraction_and_a_text(progress: object, expected: tuple[float, str]) -> None:
    assert format_progress("running", progress) == expected


@pytest.mark.parametrize("with_message", [True, False])
def test_a_traceback_names_the_function_and_its_message_only_if_asked(with_message: bool) -> None:
    prompt = " ".join(["a", "secret"])  # not a line of the traceback
    try:
        int(prompt)
    except ValueError as error:
        text = format_traceback(error, with_message=with_message)
    assert "ValueError" in text
    assert "test_a_traceback_names_the_function" in text
    assert (prompt in text) == with_message
