"""Completes Gradio's MCP server: logins, whole answers, real progress, and calls given up."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from gradio_client import Client

from canvas.api.gradio_signatures import CLIENT_HEADER, MCP

if TYPE_CHECKING:
    from gradio import Blocks

IDENTITY = ("authorization", "cookie")  # headers


def patch_mcp_server(page: Blocks, inner_secret: str) -> None:
    """Mend the MCP server of a launched page.

    It calls the app over HTTP and hands on the agent's own key with each call of a tool, but
    with no resource, and its client brings nothing to be let in with where the app asks for
    a login. Of a call without progress it would answer all outputs as one text (Gradio 6.31).
    """
    server: Any = page.mcp_server_obj
    if server is None:
        return
    calls = McpToolRunner(server)
    server._execute_tool_without_progress = calls.plain
    server._execute_tool_with_progress = calls.with_progress
    server._get_or_create_client = McpClient(
        server,
        page.local_url or "",
        # It lets the client look at the app; a call is let in by the agent's own cookie, which
        # stands for its key (see access.py).
        {"authorization": f"Bearer {inner_secret}"} if page.auth is not None else {},
    ).ready


class McpClient:
    """The MCP server's client of the app, with what an agent brings to be let in."""

    def __init__(self, server: Any, url: str, headers: dict[str, str]) -> None:
        self._server = server
        self._url = url
        self._headers = {**headers, CLIENT_HEADER: MCP}
        self._client: Client | None = None
        self._making = threading.Lock()

    def ready(self) -> McpClient:
        """Itself, once it has asked the app what there is; in a thread, for the app is this one."""
        with self._making:
            if self._client is None:
                self._client = Client(
                    self._url,
                    headers=self._headers,  # they count more than those of a call
                    download_files=False,
                    verbose=False,
                    analytics_enabled=False,
                    ssl_verify=False,
                    _skip_components=False,
                )
        return self

    def submit(self, *values: Any, api_name: str, headers: dict[str, str] | None = None) -> Any:
        """Call a function of the app; without `headers` it is read as a resource."""
        assert self._client is not None  # noqa: S101 - whoever has us has called `ready`
        brought = self._brought() if headers is None else headers
        call = self._client.submit(*values, api_name=api_name, headers=brought)
        return _read(call) if headers is None else call

    def _brought(self) -> dict[str, str]:
        request = self._server.mcp_server.request_context.request
        return {name: request.headers[name] for name in IDENTITY if name in request.headers}


async def _read(call: Any) -> AsyncIterator[Any]:
    async for update in call:
        if update.type == "output" and not update.success:
            raise ValueError(update.outputs.get("error") or "The resource cannot be read.")
        yield update


class McpToolRunner:
    """How a tool's call is waited for; an agent that hangs up stops it."""

    def __init__(self, server: Any) -> None:
        self._server = server

    async def plain(self, call: Any) -> list[Any]:
        """The outputs, or the reason why there are none."""
        async with _cancel_on_exit(call):
            return await _outputs(call)

    async def with_progress(self, call: Any, token: str | int) -> list[Any]:
        """The same, telling the agent how far it is."""
        context = self._server.mcp_server.request_context
        async with _cancel_on_exit(call):
            async for update in call:
                if update.type != "output":
                    continue
                if update.final:
                    break
                told = parse_progress(update.outputs)
                if told is not None:
                    await context.session.send_progress_notification(
                        progress_token=token,
                        progress=told[0],
                        total=1.0,
                        message=told[1],
                        related_request_id=str(context.request_id),
                    )
            return await _outputs(call)


def parse_progress(outputs: Any) -> tuple[float, str] | None:
    """The share that is done and what to say, from what our functions yield on the way."""
    values = outputs.get("data") if isinstance(outputs, dict) else outputs
    if not values or not isinstance(values[-1], dict) or "status" not in values[-1]:
        return None
    told = values[-1]
    if "num_steps" in told:
        return told["fraction"], f"{told['status']}, step {told['step']} of {told['num_steps']}"
    if told.get("bytes_total"):
        return told["bytes_done"] / told["bytes_total"], told["status"]
    return 0.0, told["status"]


async def _outputs(call: Any) -> list[Any]:
    result = await run_sync(call.result, abandon_on_cancel=True)
    return list(result) if isinstance(result, tuple) else [result]


@asynccontextmanager
async def _cancel_on_exit(call: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if not call.done():
            with anyio.CancelScope(shield=True):
                # In a thread: it tells the server, which is this one, and waits for its answer.
                await run_sync(call.cancel)
