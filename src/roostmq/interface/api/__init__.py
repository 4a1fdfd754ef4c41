"""HTTP: `/healthz`, `/readyz`, `/metrics`, `/api/v1/...`. Imported only after the broker serves."""

from __future__ import annotations

import asyncio
import platform
import socket
from typing import TYPE_CHECKING, Any

from roostmq.errors import RoostError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from roostmq.runtime.node import Node


async def serve(bound: socket.socket, node: Node) -> None:
    """Serve on a bound socket until cancelled. The web stack is imported in a thread."""
    app = await asyncio.to_thread(make_app, node)
    import uvicorn

    class Server(uvicorn.Server):
        """Signals belong to the node."""

        def install_signal_handlers(self) -> None:
            """Leave them alone."""

        def capture_signals(self) -> Any:
            """Leave them alone."""
            import contextlib

            return contextlib.nullcontext()

    settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", loop="none", ws="none")
    await Server(settings).serve([bound])


def make_app(node: Node) -> FastAPI:
    """The application over a node."""
    import uvicorn.logging  # noqa: F401  (the slow part of the import, while still in the thread)
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    from roostmq import engine
    from roostmq.interface.api.kept import add_routes
    from roostmq.interface.metrics import exposition

    app = FastAPI(title="RoostMQ", version=engine.version(), docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The broker serves clients and keeps what it accepts; 503 with a reason while it does not."""
        reason = not_ready(node)
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": reason}, 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(exposition(await node.stats()), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/v1/info")
    async def info() -> dict[str, Any]:
        """What runs here."""
        stats = await node.stats()
        return {
            "name": "RoostMQ",
            "version": engine.version(),
            "python": platform.python_version(),
            "uptime_s": stats["uptime_ms"] / 1000,
            "data_dir": node.config.durability.data_dir,
            "lanes": len(stats["lanes"]),
            "connections": stats["gauges"]["connections"],
            "sessions": stats["gauges"]["sessions"],
            "counters": stats["counters"],
            "gauges": stats["gauges"],
        }

    @app.exception_handler(RoostError)
    @app.exception_handler(TimeoutError)
    async def failed(_: object, error: Exception) -> JSONResponse:
        """The engine does not answer, or not yet."""
        return JSONResponse({"error": str(error) or "the engine does not answer in time"}, 503)

    add_routes(app, node)
    if node.cluster is not None:
        from roostmq.interface.api import balance, cluster

        cluster.add_routes(app, node)
        balance.add_routes(app, node)
    return app


def not_ready(node: Node) -> str | None:
    """Why the broker is not ready; None if it is."""
    if node.not_ready is not None:
        return node.not_ready
    return None if node.disk_error is None else f"the disk does not take what must be kept: {node.disk_error}"
