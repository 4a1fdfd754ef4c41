"""Clients with sessions that are kept come back through one door, and somebody looks at what is retained.

Contract: what each gets is kept as (topic, payload), in the order in which paho hands it over: a message of QoS 2 when it is
released, so order is that of each QoS.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import paho.mqtt.client as mqtt

QUIET_S = 0.5


def gone(client: mqtt.Client) -> None:
    """It says DISCONNECT, and its thread ends; that thread may take itself out of what paho is just about to join."""
    client.disconnect()
    with contextlib.suppress(AttributeError):
        client.loop_stop()


class Returned:
    """See the top of the file."""

    def __init__(self, door: str, names: list[str], retained: str) -> None:
        self.got: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        self.present: dict[str, bool] = {}
        self.values: dict[str, str] = {}
        self.clients = [self._client(name) for name in names]
        self.reader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "reader")
        self.reader.on_message = lambda _c, _u, m: self.values.__setitem__(m.topic, m.payload.decode())
        self.reader.on_connect = lambda *_: self.reader.subscribe(retained, 1)
        for client in (*self.clients, self.reader):
            host, _, port = door.rpartition(":")
            client.connect(host, int(port))
            client.loop_start()

    def _client(self, name: str) -> mqtt.Client:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, clean_session=False)
        client.on_connect = lambda _c, _u, flags, _r, _p: self.present.setdefault(name, flags.session_present)
        client.on_message = lambda _c, _u, m: self.got[name].append((m.topic, m.payload.decode()))
        return client

    async def until(self, messages: int, values: int, at_most_s: float = 30.0) -> None:
        """Wait until so many have come, and a moment longer: nothing may come twice."""
        end = time.monotonic() + at_most_s
        while time.monotonic() < end and (sum(map(len, self.got.values())) < messages or len(self.values) < values):
            await asyncio.sleep(0.05)
        await asyncio.sleep(QUIET_S)

    def stop(self) -> None:
        for client in (*self.clients, self.reader):
            gone(client)
