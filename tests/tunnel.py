"""Stands in for the program of Gradio's tunnel: `frpc http -l PORT …` on this machine alone."""

from __future__ import annotations

import socket
import sys
import threading

CHUNK = 1 << 16


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on all that comes, then say that nothing more will."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one side has gone


def serve(port: int) -> None:
    """Forward every connection to that port; says where, as the real program does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        sys.stdout.write(f"[I] start proxy success: {address}\n")
        sys.stdout.flush()
        while True:
            outside, _ = server.accept()
            inside = socket.create_connection(("127.0.0.1", port))
            for pair in ((outside, inside), (inside, outside)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[sys.argv.index("-l") + 1]))
