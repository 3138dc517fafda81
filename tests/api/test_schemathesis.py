"""Whatever is sent, the documented routes answer in their family's words and never break."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from canvas import Studio

OPERATIONS = {
    "POST /v1/images/generations",
    "POST /sdapi/v1/txt2img",
    "GET /sdapi/v1/progress",
    "GET /pictures/{filename}",
    "GET /downloads/{filename}",
    "GET /export.zip",
}
SMALL = {"num_inference_steps": 1, "steps": 1, "n": 1, "batch_size": 1, "n_iter": 1}


@pytest.fixture
def no_finalizers() -> Iterator[None]:
    # hypothesis parses our sources meanwhile; see conftest.py on Python 3.11.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_finalizers")
def test_no_input_breaks_a_route(served: Studio) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} >= OPERATIONS
    for operation in operations:
        call_with_anything(operation, GenerationMode.POSITIVE)
        with suppress(Unsatisfiable):  # where there is nothing to get wrong
            call_with_anything(operation, GenerationMode.NEGATIVE)


def call_with_anything(operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=15 if operation.method == "post" else 3,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            # What is looked for is answers, not pictures.
            case.body.update({name: 1 for name in SMALL if name in case.body})
        answer = case.call(timeout=60)
        assert answer.status_code < 500, (operation.label, case.body, answer.text)
        if answer.status_code >= 400:
            told = answer.json()
            # The word of each family for what went wrong.
            word = "detail" if operation.path.startswith("/sdapi") else "error"
            assert told.get(word) or answer.status_code in (404, 405), (operation.label, told)

    check()
