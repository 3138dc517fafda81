"""Long tests write a report; `python -m tests.resilience.table` makes a table of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from tests.resilience.table import read_report, write_report

Report = Callable[..., None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Call it at the end of a test, after its assertions; only long tests are recorded."""
    lines: list[dict[str, object]] = []

    def add(what: str, times: int, unit: str = "times", found: str = "nothing lost") -> None:
        today = datetime.now(UTC).date().isoformat()
        lines.append({"what": what, "times": times, "unit": unit, "found": found, "on": today})

    yield add
    if lines and request.node.get_closest_marker("long"):
        recorded = read_report()
        recorded[request.node.originalname or request.node.name] = lines[-1]
        write_report(recorded)
