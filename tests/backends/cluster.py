"""A Ray cluster on this machine: a head without cores, and nodes with one core each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
# Workers have the niceness 15 by default, and other programs may keep the cores busy.
BUSY = {"RAY_worker_niceness": str(os.nice(0)), "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120"}
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class LoopbackCluster:
    """`address` is that of Ray Client, which servers outside of the cluster use.

    The nodes keep their files in `folder`.
    """

    def __init__(self, num_nodes: int, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._environ = {"CANVAS_CACHE_DIR": str(folder / "nodes"), "PYTHONPATH": str(ROOT), **BUSY}
        port = free_port()
        self.address = f"ray://127.0.0.1:{port}"
        with patch.dict(os.environ, self._environ):
            self._cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "ray_client_server_port": port})
        self._nodes: dict[str, Any] = {}
        for number in range(1, num_nodes + 1):
            self.add(f"node-{number}")

    @property
    def gcs_address(self) -> str:
        return str(self._cluster.address)

    def add(self, name: str) -> None:
        with patch.dict(os.environ, self._environ):
            self._nodes[name] = self._cluster.add_node(node_name=name, **NODE)

    def kill(self, name: str) -> None:
        """End all processes of a node, as a power cut would."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def running_cluster(folder: Path, num_nodes: int = 2) -> Iterator[LoopbackCluster]:
    cluster = LoopbackCluster(num_nodes, folder)
    yield cluster
    cluster.shutdown()


def actor_processes() -> list[psutil.Process]:
    """The processes of the actors."""
    return [process for process in psutil.process_iter(["cmdline"]) if "ray::RayWorker" in _title(process)]


def _title(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
