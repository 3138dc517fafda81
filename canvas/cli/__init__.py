"""The command line: `python -m canvas …`."""
