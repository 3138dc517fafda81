"""`python -m tests.resilience.table` writes the report of the long tests into SECURITY.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPORT = Path(__file__).with_name("long_run.json")
SECURITY = Path(__file__).resolve().parents[2] / "SECURITY.md"
BEGIN, END = "<!-- long run -->", "<!-- end of long run -->"


def read_report() -> dict[str, dict[str, Any]]:
    """The latest result of each long test, by its name."""
    return json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}


def write_report(report: dict[str, dict[str, Any]]) -> None:
    """Write the report sorted by test, so that a run changes only its own lines."""
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    REPORT.write_text(text + "\n", encoding="utf-8")


def format_table(report: dict[str, dict[str, Any]]) -> str:
    """The report as a Markdown table."""
    rows = [
        f"| {line['what']} | {_format_times(line)} | {line['found']} | {line['on']} |"
        for _, line in sorted(report.items())
    ]
    return "\n".join(["| Test | Repetitions | Result | Date |", "|---|---|---|---|", *rows])


def _format_times(line: dict[str, Any]) -> str:
    return "once" if line["times"] == 1 else f"{line['times']:,} {line['unit']}"


def replace_table(document: str, report: dict[str, dict[str, Any]]) -> str:
    """The document with the table between its marks replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{format_table(report)}\n{END}{after}"


if __name__ == "__main__":
    document = SECURITY.read_text(encoding="utf-8")
    SECURITY.write_text(replace_table(document, read_report()), encoding="utf-8")
