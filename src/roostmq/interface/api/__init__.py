"""HTTP: `/healthz`, `/readyz`, `/metrics`, `/api/v1/info`. Imported only after the broker serves."""

from __future__ import annotations

import asyncio
import platform
import socket
from typing import TYPE_CHECKING, Any

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
    from roostmq.interface.metrics import exposition

    app = FastAPI(title="RoostMQ", version=engine.version(), docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The broker serves clients."""
        return JSONResponse({"ready": node.ready}, status_code=200 if node.ready else 503)

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
            "lanes": len(stats["lanes"]),
            "connections": stats["gauges"]["connections"],
            "sessions": stats["gauges"]["sessions"],
            "counters": stats["counters"],
            "gauges": stats["gauges"],
        }

    return app
