"""A quiet connection to a Ray cluster: a cluster of our own on this machine, or one that runs already."""

import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import ImpactError

OBJECT_STORE_BYTES = 256 << 20
"""Shards and receipts are small; Ray would take a third of the machine's memory."""
NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""Ray's C++ part writes to the terminal what is as bad as this says; it is read when Ray starts."""
KNOCK_S = 10.0
"""How long the other side of an address may take to accept a connection."""


@contextmanager
def connected(address: str | None, *, num_cpus: int | None) -> Iterator[Any]:
    """Ray, connected. Without an address, a local cluster lives as long as the block; it counts ``num_cpus`` cores if
    this machine has fewer. A connection that this process has already is used as it is and stays.

    Raises ImpactError if Ray is not installed, does not start, or nothing answers at the address.
    """
    ray = _ray()
    with _said(NO_STATISTICS), _quiet(ray):
        if ray.is_initialized():
            yield ray
            return
        try:
            _connect(ray, address, num_cpus)
            yield ray
        finally:
            ray.shutdown()


def room(ray: Any, *, num_cpus: int, on_gpu: bool) -> int:
    """Workers of that size that the nodes of the cluster hold."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = (int(node.get("CPU", 0)) // num_cpus for node in nodes)
    gpus = (int(node.get("GPU", 0)) for node in nodes)
    return sum(min(pair) if on_gpu else pair[0] for pair in zip(cores, gpus, strict=True))


def total(ray: Any, resource: str) -> int:
    """How much of a resource, "CPU" or "GPU", the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def last_line(error: BaseException) -> str:
    """The end of an error's message: Ray puts its own part before what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".: ") if lines else type(error).__name__


def _ray() -> Any:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError:
        raise ImpactError("Ray is not installed here: pip install 'mask-impact[ray]'") from None


def _connect(ray: Any, address: str | None, num_cpus: int | None) -> None:
    # Without a word, an address may come from RAY_ADDRESS: "local" never joins.
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        num_cpus = max(num_cpus, os.cpu_count() or 1) if num_cpus else None
        options |= {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    # Workers must find this engine when it is no installed one; Ray puts in what a node's own variable says.
    path = f"{Path(__file__).parents[2]}{os.pathsep}${{PYTHONPATH}}"
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    try:
        _require_listener(address)
        with _kept_signal(), _without_lines(LEVEL.encode()), _said({LEVEL: "fatal"}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        where = f"no Ray cluster answers at {address!r}" if address else "Ray cannot start a cluster on this machine"
        raise ImpactError(f"{where} ({last_line(error)}): {_advice(address)}") from error


def _require_listener(address: str | None) -> None:
    """Raises OSError if nobody listens at ``host:port``: Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _advice(address: str | None) -> str:
    if address:
        return "start one with `ray start --head`, give its address, or give none for a cluster on this machine"
    return "see that memory and /dev/shm have 1 GB free, or work without Ray"


@contextmanager
def _kept_signal() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM when it starts."""
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if here and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _said(words: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, unless the user gave them others."""
    added = {name: value for name, value in words.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _without_lines(word: bytes) -> Iterator[None]:
    """What the block writes to stderr comes after it, less the lines with ``word``: C++ knows no sys.stderr."""
    try:
        terminal = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            kept.seek(0)
            with suppress(OSError):
                os.write(2, b"".join(line for line in kept if word not in line))


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray's messages go to its log files alone: lost actors are our business, and stdout belongs to results."""
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.data")}
    handlers = [(handler, handler.level) for handler in logging.getLogger("ray.data").handlers]
    # The switch that Ray's own debugger uses while it has the terminal.
    worker, context = ray._private.worker, ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    printing = getattr(worker, "_worker_logs_enabled", True)
    try:
        logging.getLogger("ray").setLevel(logging.ERROR)
        for handler, _ in handlers:
            if handler.name == "console":
                handler.setLevel(logging.CRITICAL + 1)
        worker._worker_logs_enabled = context.enable_progress_bars = False
        yield
    finally:
        worker._worker_logs_enabled, context.enable_progress_bars = printing, bars
        for handler, level in handlers:
            handler.setLevel(level)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
