from __future__ import annotations

from tests.resilience.table import PAPER, read_report, table, with_table


def test_the_table_is_that_of_the_report() -> None:
    paper = PAPER.read_text(encoding="utf-8")
    assert with_table(paper, read_report()) == paper, "run python -m tests.resilience.table"


def test_a_line_tells_what_how_often_and_what_was_lost() -> None:
    line = {"what": "killed", "times": 2000, "unit": "times", "found": "nothing lost", "on": "now"}
    assert table({"test": line}).endswith("| killed | 2,000 times | nothing lost | now |")
