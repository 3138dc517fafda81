"""Builds the page, the routes and the middleware over a studio, serves them, and ends on Ctrl+C and SIGTERM.

At its end it answers the clients, keeps unfinished jobs, and exits with 0.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from canvas.engine import configure_process
from canvas.errors import InvalidInput
from canvas.platform import trusted_proxies, use_own_temp_folder
from canvas.server.auth import LOGIN_HINT, ApiKeyMiddleware, Login, LoginAttemptMiddleware, current_user, use_sessions
from canvas.server.discovery import write_server_file
from canvas.server.identity import IdentityMiddleware, VisitorTokens, hugging_face_account, load_secret
from canvas.server.rate_limits import UploadLimitMiddleware
from canvas.server.routes import (
    ErrorMiddleware,
    RestoreRootPathMiddleware,
    RouteListMiddleware,
    StripRootPathMiddleware,
    only_final_app,
)
from canvas.server.security import ImageLoginMiddleware, SignedLinks, named_origins_only, security_middleware
from canvas.server.share_link import ShareLink, open_share_link
from canvas.server.uploads import MAX_UPLOAD, BodyLimitMiddleware, UploadOwnerMiddleware, start_sweeping
from canvas.settings import Settings
from canvas.studio import Studio

if TYPE_CHECKING:
    from gradio import Blocks

# For Gradio's events, which may wait for a job or for a locked database. With its default of 40 they
# would use the threads that all other routes share.
MAX_THREADS = 100
WARM_UP_DELAY = 0.5  # seconds, so that importing torch does not delay the first page
EXIT_SECONDS = 4.0  # from the signal to the end of the process, whatever still runs
ANSWER_SECONDS = 0.5  # in which clients get the answers of the jobs that were ended
DRAIN_SECONDS = 1.5  # for responses that are still being sent
SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":  # Ctrl+Break, and closing the console
    SIGNALS.append(signal.SIGBREAK)

log = logging.getLogger(__name__)


def launch(studio: Studio, *, block: bool = True, quiet: bool = False) -> Blocks:
    """Serve a studio; with `block` until interrupted. The Blocks have the `local_url`.

    Raises InvalidInput for an address that cannot or must not be used.
    """
    studio.settings.check_exposure()
    port = listening_port(studio.settings.host, studio.settings.port)
    configure_process()
    temp_folder = use_own_temp_folder()
    _configure_logging()
    from canvas.api.gradio_api import register_api
    from canvas.api.mcp import patch_mcp_server
    from canvas.api.rest import build_routes
    from canvas.ui.app import build_page, launch_options

    settings = studio.settings
    link = ShareLink() if settings.share else None
    with only_final_app():
        page = build_page(studio, link, register_api=register_api)
    internal_token = secrets.token_urlsafe(32)
    login = Login(*settings.auth) if settings.auth else None
    if settings.zero_gpu:
        studio.warm_up(wait=True)  # ZeroGPU packs the models that are on "cuda" at launch
    routes = build_routes(studio)
    app_kwargs = {
        "routes": routes,
        "middleware": _build_middleware(studio, login, internal_token, routes),
        "lifespan": named_origins_only(settings.trusted_hosts),
    }
    with trusted_proxies(settings.proxies):
        page.launch(
            server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
            server_port=port,
            share=False,  # see open_share_link
            auth=login,
            auth_message=LOGIN_HINT if login else None,
            root_path=settings.root_path or None,
            i18n=page.i18n_instance,
            app_kwargs=app_kwargs,
            mcp_server=True,
            enable_monitoring=False,
            run_history=False,  # it keeps prompts in the browser, where we cannot delete them
            max_file_size=MAX_UPLOAD,
            max_threads=MAX_THREADS,
            prevent_thread_lock=True,
            quiet=quiet,
            **launch_options(),
        )
    if login:
        use_sessions(page, login.sessions)
    patch_mcp_server(page, internal_token, studio)
    start_sweeping(temp_folder, studio.temp_files)
    # "[::]" is no address to connect to.
    url = str(page.local_url).replace("[::]", "[::1]")
    page.local_url = url  # type: ignore[assignment]  # Gradio gives no type
    write_server_file(settings.data_dir, url)
    if not settings.zero_gpu:
        warm_up = threading.Timer(WARM_UP_DELAY, studio.warm_up)
        warm_up.daemon = True
        warm_up.start()
    if link:
        threading.Thread(target=open_share_link, args=(link, page), daemon=True).start()
    if block:
        block_until_stopped(page, studio)
    return page


def listening_port(host: str, port: int) -> int:
    """The port, or a free one for 0, if the server can listen there; otherwise raises InvalidInput.

    Called before Gradio tries, which would name an environment variable of its own.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        message = f"--host {host} is not a known address ({error.strerror}). Use 127.0.0.1, or 0.0.0.0 for all."
        raise InvalidInput("host", host, message=message) from error
    addresses = {(family, address) for family, _, _, _, address in found}
    if port:
        addresses.add((socket.AF_INET, ("127.0.0.1", port)))  # Gradio requires this one as well
    try:
        ports = [_bind(family, address) for family, address in addresses]
    except OSError as error:
        raise _listening_error(host, port, error) from error
    return ports[0]


def _bind(family: socket.AddressFamily, address: tuple[object, ...]) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        if os.name == "posix":  # as asyncio does
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(address)
        port: int = server.getsockname()[1]
    return port


def _listening_error(host: str, port: int, error: OSError) -> InvalidInput:
    if error.errno == errno.EADDRINUSE:
        message = f"Port {port} is in use by another program: choose another one with --port, or 0 for any free port."
        return InvalidInput("port", port, message=message)
    if error.errno in (errno.EACCES, errno.EPERM):
        message = f"Port {port} is reserved for administrators: choose one from 1024 to 65535 with --port."
        return InvalidInput("port", port, message=message)
    message = (
        f"The server cannot listen on --host {host} --port {port} ({error.strerror}): use an address of this "
        "computer, such as 127.0.0.1, or 0.0.0.0 for all."
    )
    return InvalidInput("host", host, message=message)


def main(arguments: list[str] | None = None) -> None:
    """Serve with the settings of the environment and the command line."""
    configure_process()  # before the studio starts threads
    with exit_on_signals(), Studio(Settings.from_command_line(arguments)) as studio:
        launch(studio)


def _build_middleware(
    studio: Studio, login: Login | None, internal_token: str, routes: list[BaseRoute]
) -> list[Middleware]:
    settings = studio.settings
    hosts = settings.trusted_hosts if settings.checks_host else None
    visitors = None
    if settings.is_public:
        visitors = VisitorTokens(load_secret(settings.visitor_secret_file), studio.owns_data)
    links = SignedLinks(load_secret(settings.visitor_secret_file)) if login else None
    login_attempts = [Middleware(LoginAttemptMiddleware)] if login else []
    return [
        Middleware(StripRootPathMiddleware),
        *security_middleware(hosts, settings.outputs_dir, studio.is_stored_image, own_name=settings.host),
        *login_attempts,
        Middleware(ErrorMiddleware, log_values=not settings.is_public),
        Middleware(RouteListMiddleware, own_routes=routes),
        Middleware(BodyLimitMiddleware),
        Middleware(UploadLimitMiddleware, public=settings.is_public),
        Middleware(
            IdentityMiddleware,
            visitors=visitors,
            get_login=current_user if login else None,
            get_hf_account=hugging_face_account if settings.sign_in else None,
        ),
        Middleware(
            ApiKeyMiddleware,
            api_keys=studio.api_keys,
            required=settings.requires_api_key,
            login_required=login is not None,
            internal_token=internal_token,
        ),
        Middleware(ImageLoginMiddleware, links=links),
        Middleware(UploadOwnerMiddleware, temp_files=studio.temp_files),
        Middleware(RestoreRootPathMiddleware),
    ]


def _configure_logging() -> None:
    log = logging.getLogger("canvas")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the process with 0 within EXIT_SECONDS of a signal that arrives in the block.

    The first signal raises SystemExit(0) in the main thread; later ones do nothing. As process 1 of
    a container the process gets SIGTERM only if it has a handler, so call this early. Whatever is
    written to the data folder survives a sudden end. Another thread than the main one cannot handle
    signals, so that nothing changes there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signalled = False

    def handle(number: int, _frame: object) -> None:
        nonlocal signalled
        if signalled:
            return
        signalled = True
        # Threads that load a model or wait for a locked database cannot be interrupted.
        timer = threading.Timer(EXIT_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()
        log.info("Shutting down (%s).", signal.Signals(number).name)
        raise SystemExit(0)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        if signalled:
            atexit._run_exitfuncs()  # Python's own end also unloads the libraries, which can take seconds
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def block_until_stopped(page: Blocks, studio: Studio) -> None:
    """Wait for Ctrl+C, `exit_on_signals` or `page.close()`; then end all jobs and close the page."""
    try:
        while page.is_running:
            time.sleep(0.1)
    except (KeyboardInterrupt, SystemExit):
        studio.stop()
        close_page(page)


def close_page(page: Blocks) -> None:
    """Close the server once the clients have their answers, or after at most two seconds."""
    time.sleep(ANSWER_SECONDS)
    server = page.server
    server.should_exit = True  # no more connections; those that wait for an answer stay
    deadline = time.monotonic() + DRAIN_SECONDS
    page.app.stop_event.set()  # ends Gradio's heartbeats, which would stay open
    while server.thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    server.force_exit = True
    page.close(verbose=False)
