"""Servers that the start-up benchmark runs."""

from __future__ import annotations

import time

import pytest

from canvas.benchmark.startup import run_server
from canvas.errors import CanvasError


def test_run_server_yields_start_time_and_port() -> None:
    before = time.monotonic()
    with run_server(["-m", "http.server"]) as (started, port):
        assert before <= started <= time.monotonic()
        assert port > 0


def test_run_server_reports_why_the_server_did_not_start() -> None:
    arguments = ["-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(CanvasError, match="no such thing"), run_server(arguments):
        pass
