"""Long runs leave a report, from which `python -m tests.resilience.table` makes the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from tests.resilience.table import read_report, write_report

Tell = Callable[..., None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Tell]:
    """Call it at the end of a test, after all is asserted; only long forms are kept."""
    lines: list[dict[str, object]] = []

    def tell(what: str, times: int, unit: str = "times", found: str = "nothing lost") -> None:
        today = datetime.now(UTC).date().isoformat()
        lines.append({"what": what, "times": times, "unit": unit, "found": found, "on": today})

    yield tell
    if lines and request.node.get_closest_marker("long"):
        known = read_report()
        known[request.node.originalname or request.node.name] = lines[-1]
        write_report(known)
