"""RoostMQ: an MQTT broker that outgrows one server without its clients noticing.

    from roostmq import Broker

    with Broker() as broker:
        print(broker.host, broker.port)

The web stack is not imported here; `Broker` needs only the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roostmq.testing.broker import Broker, Message

__all__ = ["Broker", "Message", "__version__"]


def __getattr__(name: str) -> Any:
    """Import late, so that `import roostmq` costs next to nothing."""
    if name in ("Broker", "Message"):
        from roostmq.testing import broker

        return getattr(broker, name)
    if name == "__version__":
        from roostmq import engine

        return engine.version()
    raise AttributeError(f"module 'roostmq' has no attribute {name!r}")
