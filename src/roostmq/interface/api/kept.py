"""HTTP about what is kept: `/api/v1/why` and `/api/v1/export`. Imports the web stack; imported late.

An export holds every payload and writes a file, so it is refused unless the admin port is on loopback and was addressed
as such (a page in a browser on this machine cannot reach it by a name of its own); it never replaces a file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, Header, Query
from fastapi.responses import JSONResponse

from roostmq.config import is_loopback

if TYPE_CHECKING:
    from roostmq.runtime.node import Node


def add_routes(app: FastAPI, node: Node) -> None:
    """Add them to an application over a node."""

    @app.get("/api/v1/why")
    async def why(client: str = Query(), topic: str | None = Query(None)) -> dict[str, Any]:
        """What became of a client's messages: the fields of the `why` event in docs/formats/door.md."""
        return await node.why(client, topic)

    @app.post("/api/v1/export")
    async def export(file: str = Body(embed=True), host: str = Header("")) -> JSONResponse:
        """Write everything that is kept to a new file of the broker's machine: docs/formats/export.md."""
        refused = refusal(node.config.admin.host, host, file)
        if refused is not None:
            return JSONResponse({"error": refused[1]}, refused[0])
        answer = await node.export(file)
        if not answer["ok"]:
            return JSONResponse({"error": answer["error"]}, 500)
        return JSONResponse(answer)


def refusal(admin_host: str, host_header: str, file: str) -> tuple[int, str] | None:
    """Status and text if an export to this file may not be; None if it may."""
    try:
        named = urlsplit(f"//{host_header}").hostname or ""
    except ValueError:
        named = ""
    if not is_loopback(admin_host) or not is_loopback(named):
        return 403, "an export holds every payload: it is written only for who asks on the loopback admin port"
    if not os.path.isabs(file):
        return 400, f"file: `{file}` is not an absolute path"
    if os.path.lexists(file):
        return 409, f"{file} is there already; an export does not replace a file"
    if not os.path.isdir(os.path.dirname(file)):
        return 400, f"{os.path.dirname(file)} is not a directory"
    return None
