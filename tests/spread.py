"""`roost` with settings of the engine that no user has: `python spread.py JSON run ...`.

Protocol scenarios run with them once more: with connections in other lanes than their sessions, on three nodes where
each client dials another one, and on three nodes whose partitions move all the while.
"""

import json
import socket
import sys
import threading
from typing import Any

from roostmq import config, engine
from roostmq.interface.cli import main


class Apart(int):
    """So many lanes, and connections in other ones than their sessions."""


class Nodes(int):
    """Three nodes with so many lanes each; every client dials the next one."""


class Moving(Nodes):
    """The same, and each partition moves to the next node again and again."""


MOVES = {"carried", "move_failed"}


def obey(made: engine.Engine, path: str) -> None:
    """Orders come as lines on a socket; what becomes of moves goes back on it."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    usual = made.events

    def told() -> list[engine.Event]:
        found = usual()
        for event in found:
            if event.name in MOVES:
                line.sendall(json.dumps({"event": event.name, **event.fields}).encode() + b"\n")
        return found

    made.events = told  # type: ignore[method-assign]

    def follow() -> None:
        with line.makefile() as orders:
            for order in orders:
                made.submit(json.loads(order))

    threading.Thread(target=follow, daemon=True).start()


def with_settings(more: dict[str, Any]) -> None:
    """Adds settings to those that the configuration makes, and orders that an engine gets when it has started."""
    usual, begin = config.Config.engine_settings, engine.Engine.start
    orders = more.pop("orders", [])
    control = more.pop("control", None)

    def started(settings: engine.Settings) -> engine.Engine:
        made = begin(settings)
        made.submit(*orders)
        if control is not None:
            obey(made, control)
        return made

    engine.Engine.start = staticmethod(started)  # type: ignore[method-assign,assignment]

    def spread(self: config.Config) -> dict[str, Any]:
        return usual(self) | more

    config.Config.engine_settings = spread  # type: ignore[method-assign]


if __name__ == "__main__":
    with_settings(json.loads(sys.argv.pop(1)))
    main()
