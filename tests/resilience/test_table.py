from __future__ import annotations

import re

import pytest

from tests.resilience.table import SECURITY, format_table, read_report, replace_table


def test_security_md_has_the_table_of_the_report() -> None:
    document = SECURITY.read_text(encoding="utf-8")
    updated = replace_table(document, read_report())
    assert updated == document, "run python -m tests.resilience.table"


def test_format_table_writes_a_row_per_test() -> None:
    line = {"what": "killed", "times": 2000, "unit": "times", "found": "nothing lost", "on": "now"}
    assert format_table({"test": line}).endswith("| killed | 2,000 times | nothing lost | now |")


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", "README.md"])
def test_paths_in_the_documents_exist(name: str) -> None:
    document = (SECURITY.parent / name).read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:tests|canvas|assets)/[\w./-]*\w", document)
    assert paths
    assert [path for path in paths if not (SECURITY.parent / path).exists()] == []
