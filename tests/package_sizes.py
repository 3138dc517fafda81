"""Modules and lines of each package, and the longest module: `python -m tests.package_sizes`.

`canvas.benchmark` and `canvas.training` are apart: nothing else imports them.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.test_structure import APART, PACKAGE, modules, package_of


def main() -> None:
    """Write one line a package, the sums, and the longest module."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    longest = (0, "")
    for name, path in modules().items():
        package = "canvas" if path.parent == PACKAGE else package_of(name)
        length = len(path.read_text(encoding="utf-8").splitlines())
        lines[package] += length
        files[package] += path.stem != "__init__"
        if package not in APART:
            longest = max(longest, (length, name))
    rows = [(package, files[package], lines[package]) for package in sorted(lines)]
    inside = [row for row in rows if row[0] not in APART]
    rows.append(("together", sum(row[1] for row in inside), sum(row[2] for row in inside)))
    for package, count, length in rows:
        sys.stdout.write(f"{package:10}{count:5} modules{length:8,} lines\n")
    sys.stdout.write(f"longest: {longest[1]}, {longest[0]} lines\n")


if __name__ == "__main__":
    main()
