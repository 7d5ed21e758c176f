"""Engines that forget within seconds what others keep for minutes or hours."""

from __future__ import annotations

from posttrain.engine import promises, samplers, server, sessions, traces


def end_early() -> None:
    """Sessions end after silence, as those of clients that have vanished."""
    sessions.FORGET = 6.0
    forget_early()


def forget_early() -> None:
    """Bounds that a short run reaches: results, snapshots and traces."""
    promises.FETCHED, promises.SWEEP = 0.5, 0.2
    server.TIDY = 0.5
    samplers.NAMELESS = 16
    traces.KEPT = 100
