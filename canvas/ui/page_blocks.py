"""The Blocks of the page: checks the inputs of every event, and explains what Gradio does not.

A client chooses the inputs of an event freely, whatever the page would send. Gradio checks the paths
in them, but accepts any file of its temporary folder and of the folders that it serves.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gradio as gr
from gradio.blocks import BlocksConfig, convert_component_dict_to_list
from gradio.components.image_editor import EditorData
from gradio.processing_utils import async_ssrf_protected_download

from canvas.errors import CanvasError, InvalidInput, LazyMessage, MissingApiKey, UnexpectedError
from canvas.formatting import format_bytes, format_traceback
from canvas.jobs.inputs import NOT_UPLOADED, TempFiles
from canvas.request import LOCAL_OWNER
from canvas.ui.events import error_toast

# Gradio looks for new events every millisecond, which keeps a tenth of a core busy. An idle page does it
# every 20 ms; an event that is not answered at once takes up to 50 ms longer.
POLL_INTERVAL, IDLE_POLL_INTERVAL = 0.001, 0.02  # seconds
PROGRESS_INTERVAL = 0.1  # seconds between two looks for messages of gr.Progress
IDLE_AFTER = 0.2  # seconds after an event
MAX_URL_FILE = 100 * 2**20  # bytes, as for an upload

log = logging.getLogger(__name__)


class Caller(NamedTuple):
    """Who sent a request; `api_allowed` may use the APIs."""

    owner: str | None
    api_allowed: bool

    @classmethod
    def of(cls, http_request: Any) -> Caller:
        state = getattr(http_request, "state", None)
        return cls(getattr(state, "owner", LOCAL_OWNER), getattr(state, "api_allowed", state is None))


class PageConfig(BlocksConfig):
    """The components and events of a page. Its copies, one of each session, render no component.

    Gradio renders all components of a session at its start, and each that changes, for links to a
    session's values, which do not exist here (see `canvas.server.routes`).
    """

    def __copy__(self) -> BlocksConfig:
        session = super().__copy__()
        session.config_for_block = lambda *_: {}
        return session


class PageBlocks(gr.Blocks):
    """gr.Blocks whose events take only files of their caller, and answer every error in a sentence.

    With `log_values` the log has the messages of unexpected errors, which may contain prompts.
    """

    def __init__(self, temp_files: TempFiles, *, log_values: bool, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = PageConfig(self)
        self._temp_files = temp_files
        self._log_values = log_values
        self._idle_timer: asyncio.TimerHandle | None = None
        self._set_poll_interval(IDLE_POLL_INTERVAL)
        self._queue.progress_update_sleep_when_free = PROGRESS_INTERVAL

    def _set_poll_interval(self, seconds: float) -> None:
        self._queue.sleep_when_free = seconds

    def _poll_often_for_a_while(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
        self._set_poll_interval(POLL_INTERVAL)
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(IDLE_AFTER, self._set_poll_interval, IDLE_POLL_INTERVAL)

    async def process_api(  # type: ignore[override]
        self,
        block_fn: Any,
        inputs: list[Any],
        state: Any = None,
        request: Any = None,
        iterator: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run an event; a CanvasError reaches the page as a message and API clients as a sentence."""
        self._poll_often_for_a_while()
        caller = Caller.of(request)
        try:
            if iterator is None:
                inputs = [await self._checked(value, caller) for value in inputs]
            output = await super().process_api(block_fn, inputs, state, request, iterator, **options)
        except gr.Error as error:
            error.print_exception = False  # Gradio's own repeat the value
            raise
        except Exception as error:  # noqa: BLE001 - of any event, which is logged
            self._raise_readable(block_fn, error)
        self._register(output.get("data"), caller)
        return output

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Check the number of inputs; Gradio's message would repeat all of them."""
        expected = len(block_fn.inputs)
        if len(inputs) < expected:
            # The labels of API functions are their parameters
            names = ", ".join(str(block.label) for block in block_fn.inputs if getattr(block, "label", ""))
            template = "{name} takes {expected} inputs ({names}), but the call has {received}."
            values = {"name": block_fn.api_name, "expected": expected, "names": names, "received": len(inputs)}
            raise InvalidInput("data", None, message=LazyMessage(template, **values))

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **options: Any) -> list[Any]:
        """Convert the inputs; a value that does not fit its component raises InvalidInput."""
        try:
            return await super().preprocess_data(block_fn, *arguments, **options)
        except (gr.Error, CanvasError):
            raise
        except Exception as error:  # noqa: BLE001 - of any component, which is logged
            self._log(block_fn, error)
            message = LazyMessage("An input of {name} has a wrong type or value.", name=block_fn.api_name)
            raise InvalidInput("data", None, message=message) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Convert the outputs that change. Gradio builds skipped components anew, too."""
        outputs = block_fn.outputs
        if isinstance(predictions, dict) and len(outputs) > 1:
            predictions = convert_component_dict_to_list(outputs, {} if predictions == gr.skip() else predictions)
        if not isinstance(predictions, list | tuple) or not 1 < len(outputs) == len(predictions):
            return await super().postprocess_data(block_fn, predictions, state)
        changed = [not isinstance(value, dict) or value != gr.skip() for value in predictions]
        part = copy.copy(block_fn)
        part.outputs = list(compress(outputs, changed))
        values = list(compress(predictions, changed))
        converted = await super().postprocess_data(part, values[0] if len(values) == 1 else values, state)
        remaining = iter(converted)
        return [
            next(remaining) if is_changed else None if block.stateful else gr.skip()
            for block, is_changed in zip(outputs, changed, strict=True)
        ]

    async def _checked(self, value: Any, caller: Caller) -> Any:
        """The value, if every file in it belongs to the caller; the caller's URLs are downloaded."""
        if isinstance(value, list):
            return [await self._checked(item, caller) for item in value]
        if not isinstance(value, dict):
            return value
        if "path" in value or _is_file_data(value):
            return {**value, "path": await self._own_path(value.get("path"), caller)}
        return {key: await self._checked(item, caller) for key, item in value.items()}

    async def _own_path(self, path: object, caller: Caller) -> str:
        if caller.owner is None:
            raise InvalidInput("file", None, message=LazyMessage(NOT_UPLOADED))
        if isinstance(path, str) and path.lower().startswith(("http://", "https://")):
            return await self._download(path, caller)
        return str(self._temp_files.find(path, caller.owner))

    async def _download(self, url: str, caller: Caller) -> str:
        """The file of a public URL, which Gradio accepts in place of an upload."""
        if not caller.api_allowed:
            raise MissingApiKey
        try:
            path = Path(await async_ssrf_protected_download(url, self.GRADIO_CACHE))
        except Exception as error:  # Gradio raises plain Exception
            raise InvalidInput("file", None, message=LazyMessage("The URL of a file cannot be downloaded.")) from error
        if path.stat().st_size > MAX_URL_FILE:
            path.unlink()
            template = "Files must be at most {size}."
            raise InvalidInput("file", None, message=LazyMessage(template, size=format_bytes(MAX_URL_FILE)))
        self._temp_files.register(path, caller.owner or LOCAL_OWNER)
        return str(path)

    def _register(self, value: Any, caller: Caller) -> None:
        """Let the caller send back the temporary files of an answer."""
        if caller.owner is None:
            return
        if isinstance(value, list | tuple):
            for item in value:
                self._register(item, caller)
        elif isinstance(value, dict):
            if _is_file_data(value) and isinstance(value.get("path"), str):
                if Path(value["path"]).is_relative_to(self.GRADIO_CACHE):
                    self._temp_files.register(Path(value["path"]), caller.owner)
            else:
                self._register(list(value.values()), caller)

    def _raise_readable(self, block_fn: Any, error: Exception) -> NoReturn:
        if not isinstance(error, CanvasError):
            self._log(block_fn, error)
            error = UnexpectedError()
        message = error_toast(error) if block_fn.api_visibility == "private" else str(error)
        raise gr.Error(message, print_exception=False) from None

    def _log(self, block_fn: Any, error: Exception) -> None:
        log.warning("Error in %s: %s", block_fn.api_name, format_traceback(error, with_message=self._log_values))


class Drawing(gr.JSON):
    """What a gr.ImageEditor holds, copied by `COPY_DRAWING` in the browser; a callback gets the editor's value.

    The editor itself is an input of no callback, as Gradio's front end would then upload its image
    again at every later event of the page, so at every tick of a timer.
    """

    is_template = True  # private: use the front end of gr.JSON
    editor: gr.ImageEditor

    def preprocess(self, payload: Any) -> Any:
        value = getattr(payload, "root", payload)
        if not isinstance(value, dict):
            return None
        parts = {"background": value.get("background"), "layers": value.get("layers") or []}
        return self.editor.preprocess(EditorData.model_validate(parts))


COPY_DRAWING = "(drawing) => drawing && { background: drawing.background, layers: drawing.layers }"


def drawing_of(editor: gr.ImageEditor) -> Drawing:
    """A hidden component for the drawing of an editor."""
    drawing = Drawing(visible=False)
    drawing.editor = editor
    return drawing


def _is_file_data(value: Mapping[str, Any]) -> bool:
    meta = value.get("meta")
    return isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
