"""A real server that is short of memory: refused in words, given back, and on it goes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.resilience.consistency import address_of, asked, assert_whole, ended, program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")


def make(url: str, size: str) -> tuple[int, dict[str, Any]]:
    body = {"prompt": "a fox", "model": "starter", "size": size, "num_inference_steps": 2}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    return answer.status_code, answer.json()


def test_a_server_short_of_memory_says_what_fits_and_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with program("short", data) as child:
        url = address_of(child)
        assert make(url, "256x256")[0] == 200
        assert asked(child, 200) == "limited"
        status, answer = make(url, "256x256")
        assert status == 507, answer
        sentence = answer["error"]["message"]
        assert "256x256 needs 0.29 GB of memory" in sentence
        fitting = re.search(r"(\d+x\d+) would fit", sentence)
        assert fitting, sentence
        assert make(url, fitting[1])[0] == 200, "what is said to fit does"
        assert asked(child, 0) == "limited"

        status, given_back, said = asked(child, "under way").split(" ", 2)
        assert status == "failed"
        assert said.startswith("Memory ran out at 512x512.")
        assert int(given_back) < 32 * 2**20
        status, answer = make(url, "256x256")
        assert status == 200, f"the next request works: {answer}"
        assert ended(child) == 0
    assert assert_whole(data) == 3
