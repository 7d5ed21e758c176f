"""Engines that forget within seconds what others keep for minutes or hours."""

from __future__ import annotations

from posttrain.engine import promises, samplers, server, sessions, traces


def end_early() -> None:
    """Sessions end after silence, as those of clients that have vanished."""
    sessions.FORGET = 6.0
    forget_early()


def forget_early() -> None:
    """Bounds that a short run reaches: results, snapshots, traces, connections."""
    promises.FETCHED, promises.SWEEP = 0.5, 0.2
    server.TIDY, server.KEEP_ALIVE = 0.5, 2
    samplers.NAMELESS = 16
    traces.KEPT = 100
