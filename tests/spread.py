"""`roost` with settings of the engine that no user has: `python spread.py JSON run ...`.

Protocol scenarios run with them once more: with connections in other lanes than their sessions, and on three nodes where
each client dials another one.
"""

import json
import sys
from typing import Any

from roostmq import config, engine
from roostmq.interface.cli import main


class Apart(int):
    """So many lanes, and connections in other ones than their sessions."""


class Nodes(int):
    """Three nodes with so many lanes each; every client dials the next one."""


def with_settings(more: dict[str, Any]) -> None:
    """Adds settings to those that the configuration makes, and orders that an engine gets when it has started."""
    usual, begin = config.Config.engine_settings, engine.Engine.start
    orders = more.pop("orders", [])

    def started(settings: engine.Settings) -> engine.Engine:
        made = begin(settings)
        made.submit(*orders)
        return made

    engine.Engine.start = staticmethod(started)  # type: ignore[method-assign,assignment]

    def spread(self: config.Config) -> dict[str, Any]:
        return usual(self) | more

    config.Config.engine_settings = spread  # type: ignore[method-assign]


if __name__ == "__main__":
    with_settings(json.loads(sys.argv.pop(1)))
    main()
