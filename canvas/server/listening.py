"""Checks that the server can listen on its address, before Gradio tries."""

from __future__ import annotations

import errno
import os
import socket

from canvas.errors import InvalidInput


def listening_port(host: str, port: int) -> int:
    """The port, or a free one for 0, if the server can listen there; otherwise raises InvalidInput.

    Gradio would name an environment variable of its own.
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
