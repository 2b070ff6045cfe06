"""A C++ program, which serves itself: nothing but its variant is made for it."""

from __future__ import annotations

from pipeline.servers.server import Server

SERVER = Server(
    variants="pipeline.servers.libtorch.deployment:sources", prove="pipeline.servers.libtorch.deployment:compiled"
)
