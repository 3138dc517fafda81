"""What SQLite refuses, in sentences that say what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

# By what SQLite says of it.
SENTENCES = {
    ("locked", "busy"): (
        "The database {path} is locked by another program. "
        "Close what has it open (another Magic Canvas, a database browser) and try again."
    ),
    ("readonly", "read-only"): (
        "The database {path} cannot be written: the file or its folder is read-only. "
        "Give yourself the right to write there, or choose another folder with --data-dir."
    ),
    ("not a database",): (
        "The file {path} is not a database. If it was one, `python -m canvas doctor --rebuild` "
        "makes it anew from the pictures; or choose another folder with --data-dir."
    ),
    ("unable to open",): (
        "The database {path} cannot be opened. Give yourself the right to read and write there, "
        "or choose another folder with --data-dir."
    ),
    ("is full",): "The disk of {path} is full. Free some space there and try again.",
    ("disk I/O",): (
        "The disk of {path} does not take what is written ({what}): is it full? "
        "Free some space there and try again."
    ),
    ("malformed", "corrupt"): (
        "The database {path} is damaged ({what}). Stop the server and run "
        "`python -m canvas doctor --rebuild`: the pictures are found again from their files."
    ),
}
GONE = (
    "The database {path} was moved or removed while it was open. Put it back if you can, and "
    "start again: pictures made meanwhile are found by their files."
)


def sentence_of(path: Path, error: sqlite3.Error) -> str:
    """What happened to the database file and what to do, from SQLite's words."""
    what = str(error)
    for marks, sentence in SENTENCES.items():
        if any(mark in what for mark in marks):
            return sentence.format(path=path, what=what)
    return f"The database {path} cannot be used ({what}). Check the file, or move it away."
