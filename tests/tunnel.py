"""A local replacement for Gradio's tunnel program: `frpc http -l PORT …`."""

from __future__ import annotations

import socket
import sys
import threading

CHUNK = 1 << 16


def forward(source: socket.socket, target: socket.socket) -> None:
    """Copy everything from one connection to the other, including its end."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one side has closed


def serve(port: int) -> None:
    """Forward every connection to the port; prints the address as frpc does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        sys.stdout.write(f"[I] start proxy success: {address}\n")
        sys.stdout.flush()
        while True:
            client, _ = server.accept()
            upstream = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=forward, args=pair, daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[sys.argv.index("-l") + 1]))
