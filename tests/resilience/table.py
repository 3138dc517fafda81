"""`python -m tests.resilience.table`: the last long run's report as the table in SECURITY.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPORT = Path(__file__).with_name("long_run.json")
PAPER = Path(__file__).resolve().parents[2] / "SECURITY.md"
BEGIN, END = "<!-- long run -->", "<!-- end of long run -->"


def read_report() -> dict[str, dict[str, Any]]:
    """What was told of each test in its last long form."""
    return json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}


def write_report(report: dict[str, dict[str, Any]]) -> None:
    """The tests in alphabetical order, so that a run changes only its own lines."""
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    REPORT.write_text(text + "\n", encoding="utf-8")


def table(report: dict[str, dict[str, Any]]) -> str:
    """Markdown of all lines."""
    rows = [
        f"| {line['what']} | {_how_often(line)} | {line['found']} | {line['on']} |"
        for _, line in sorted(report.items())
    ]
    return "\n".join(
        ["| What was done | How often | What was lost | On |", "|---|---|---|---|", *rows]
    )


def _how_often(line: dict[str, Any]) -> str:
    return "once" if line["times"] == 1 else f"{line['times']:,} {line['unit']}"


def with_table(paper: str, report: dict[str, dict[str, Any]]) -> str:
    """The paper with the table of that report."""
    before, _, rest = paper.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(report)}\n{END}{after}"


if __name__ == "__main__":
    PAPER.write_text(with_table(PAPER.read_text(encoding="utf-8"), read_report()), encoding="utf-8")
