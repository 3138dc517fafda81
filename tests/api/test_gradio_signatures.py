from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas.api.gradio_signatures import (
    client_of,
    current_owner,
    gradio_errors,
    job_progress,
    store_guidance,
    upload_file,
)
from canvas.errors import InvalidInput, MissingApiKey, StorageError
from canvas.jobs.job import Job
from canvas.models.download import DownloadProgress
from canvas.request import ProgressUpdate

STUDIO: Any = SimpleNamespace(
    queue_position=lambda job: 3,
    queue_wait=lambda job: 9.0,
    temp_files=SimpleNamespace(find=lambda path, owner, field: f"{owner}: {path}"),
    inputs=SimpleNamespace(upload=lambda path, field: SimpleNamespace(name=f"{path} as {field}")),
    image=lambda number, owner: SimpleNamespace(filename=f"{owner}-{number}.png"),
)


def progress_of(**changes: Any) -> dict[str, Any]:
    job = Job("ann", "generate", "starter")
    for name, value in changes.items():
        setattr(job, name, value)
    progress = job_progress(STUDIO, job)
    assert (progress.pop("job_id"), progress.pop("kind"), progress.pop("model_key")) == (job.id, "generate", "starter")
    return progress


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"status": "queued", "queue_position": 3, "seconds_to_wait": 9.0}),
        ({"status": "loading"}, {"status": "loading"}),
        ({"status": "failed", "error": StorageError("Full.")}, {"status": "failed", "error": "Full."}),
        (
            {"status": "running", "progress": ProgressUpdate(1, 4, seconds_left=2.0)},
            {"status": "running", "image_index": 0, "step": 1, "num_steps": 4, "fraction": 0.25, "seconds_left": 2.0},
        ),
        (
            {"status": "downloading", "progress": DownloadProgress(1, 4, 2.0, None)},
            {
                **{"status": "downloading", "bytes_done": 1, "bytes_total": 4},
                **{"bytes_per_second": 2.0, "seconds_left": None},
            },
        ),
    ],
)
def test_the_progress_of_a_job_has_what_is_known(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert progress_of(**changes) == expected


@pytest.mark.parametrize(
    ("client", "field", "text", "message"),
    [
        ("gradio", "width", "Too wide.", "Too wide."),
        ("mcp", "width", "Too wide.", "width: Too wide."),
        ("mcp", "width", "The width is too large.", "The width is too large."),
        ("mcp", "", "Too wide.", "Too wide."),
    ],
)
def test_an_agent_gets_the_name_of_the_parameter(client: str, field: str, text: str, message: str) -> None:
    with pytest.raises(gr.Error) as error, gradio_errors(client):
        raise InvalidInput(field, 7, message=text)
    assert error.value.message == message
    assert not error.value.print_exception, "it is no fault of the server"


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(LookupError), gradio_errors():
        raise LookupError


def test_direct_calls_have_no_owner() -> None:
    with pytest.raises(MissingApiKey):
        current_owner(None)
    assert client_of(None) == "gradio"


@pytest.mark.parametrize("file", [None, 7, "a.png", ["a.png"]])
def test_a_file_is_one_that_was_uploaded(file: object) -> None:
    with pytest.raises(InvalidInput, match="an image uploaded with the call"):
        asyncio.run(upload_file(STUDIO, file, "image", "ann"))


def test_guiding_images_are_files_ids_or_names() -> None:
    items: list[Any] = [{"image": {"path": "a.png"}, "weight": 1}, {"image": 7, "weight": 2}]
    others: list[Any] = [{"image": True}, {"image": "b.png"}, {}, "text"]
    params: dict[str, Any] = {"control_images": [*items, *others], "reference_images": "text", "seed": 1}
    asyncio.run(store_guidance(STUDIO, params, "ann"))
    assert params == {
        "control_images": [
            {"image": "ann: a.png as control_images", "weight": 1},
            {"image": "ann-7.png", "weight": 2},
            *others,
        ],
        "reference_images": "text",
        "seed": 1,
    }
