"""Real clients, each over TCP, TLS and WebSocket, in 3.1.1 and 5: subscribe, publish with each QoS, retained, will."""

from __future__ import annotations

import asyncio
import queue
import ssl
import subprocess
import uuid

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from clients.conftest import needed

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "tls", "ws"])
VERSIONS = pytest.mark.parametrize("version", [4, 5])
WAIT_S = 15


def paho_client(everywhere, transport, version, **will):
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        protocol=MQTTProtocolVersion(version),
        transport="websockets" if transport == "ws" else "tcp",
    )
    if transport == "ws":
        client.ws_set_options(path="/mqtt")
    if transport == "tls":
        client.tls_set(str(everywhere.ca))
    if will:
        client.will_set(**will)
    got = queue.Queue()
    client.on_message = lambda c, u, m: got.put(m)
    ready = queue.Queue()
    client.on_connect = lambda c, u, f, reason, p: ready.put(reason)
    client.on_subscribe = lambda c, u, mid, codes, p: ready.put(codes[0])
    client.connect(*everywhere.at(transport))
    client.loop_start()
    assert not ready.get(timeout=WAIT_S).is_failure
    return client, got, ready


@TRANSPORTS
@VERSIONS
def test_paho(everywhere, transport, version):
    topic = f"paho/{uuid.uuid4().hex}"
    watcher, got, ready = paho_client(everywhere, transport, version)
    watcher.subscribe(f"{topic}/#", 2)
    assert not ready.get(timeout=WAIT_S).is_failure
    client, _, _ = paho_client(everywhere, transport, version, topic=f"{topic}/will", payload="gone", qos=1)
    for qos in (0, 1, 2):
        client.publish(f"{topic}/{qos}", b"x" * 10_000, qos).wait_for_publish(WAIT_S)
        m = got.get(timeout=WAIT_S)
        assert (m.topic, m.qos, len(m.payload)) == (f"{topic}/{qos}", qos, 10_000)
    client.publish(f"{topic}/kept", "kept", 1, retain=True).wait_for_publish(WAIT_S)
    assert got.get(timeout=WAIT_S).payload == b"kept"
    late, kept, _ = paho_client(everywhere, transport, version)
    late.subscribe(f"{topic}/kept", 1)
    assert kept.get(timeout=WAIT_S).retain
    client._sock_close()
    assert got.get(timeout=WAIT_S).payload == b"gone"
    for c in (late, watcher, client):
        c.disconnect()
        c.loop_stop()


@TRANSPORTS
@VERSIONS
async def test_aiomqtt(everywhere, transport, version):
    topic = f"aio/{uuid.uuid4().hex}"
    host, port = everywhere.at(transport)
    more = {"tls_context": ssl.create_default_context(cafile=str(everywhere.ca))} if transport == "tls" else {}
    if transport == "ws":
        more |= {"transport": "websockets", "websocket_path": "/mqtt"}
    protocol = aiomqtt.ProtocolVersion.V5 if version == 5 else aiomqtt.ProtocolVersion.V311
    async with asyncio.timeout(WAIT_S), aiomqtt.Client(host, port, protocol=protocol, **more) as client:
        await client.subscribe(f"{topic}/#", 2)
        for qos in (0, 1, 2):
            await client.publish(f"{topic}/{qos}", f"{qos}", qos)
        seen = []
        async for m in client.messages:
            seen.append((str(m.topic), m.payload, m.qos))
            if len(seen) == 3:
                break
        assert sorted(seen) == [(f"{topic}/{q}", f"{q}".encode(), q) for q in (0, 1, 2)]


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@VERSIONS
async def test_gmqtt(everywhere, transport, version):
    """gmqtt has no WebSocket; QoS 0 and 1 are what it publishes reliably."""
    topic = f"gmqtt/{uuid.uuid4().hex}"
    host, port = everywhere.at(transport)
    context = ssl.create_default_context(cafile=str(everywhere.ca)) if transport == "tls" else False
    client = gmqtt.Client(f"gmqtt-{uuid.uuid4().hex}")
    seen, subscribed = asyncio.Queue(), asyncio.Event()

    async def on_message(client, name, payload, qos, properties):
        seen.put_nowait((name, payload, qos))
        return 0

    client.on_message = on_message
    client.on_subscribe = lambda *a: subscribed.set()
    await client.connect(host, port, ssl=context, version=version)
    client.subscribe(f"{topic}/#", qos=2)
    await asyncio.wait_for(subscribed.wait(), WAIT_S)
    for qos in (0, 1, 2):
        client.publish(f"{topic}/{qos}", f"{qos}", qos=qos)
        assert await asyncio.wait_for(seen.get(), WAIT_S) == (f"{topic}/{qos}", f"{qos}".encode(), qos)
    # what QoS 2 still owes has passed when this one is here: the client's TLS takes nothing after its own close
    client.publish(f"{topic}/end", "end", qos=0)
    await asyncio.wait_for(seen.get(), WAIT_S)
    await client.disconnect()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_mosquitto_clients(everywhere, transport, version):
    """mosquitto_pub and mosquitto_sub of Debian, which have no WebSocket."""
    topic = f"mosquitto/{uuid.uuid4().hex}"
    host, port = everywhere.at(transport)
    at = ["-h", host, "-p", str(port), "-V", version]
    if transport == "tls":
        at += ["--cafile", str(everywhere.ca)]
    pub = [needed("mosquitto_pub"), *at]
    subprocess.run([*pub, "-t", f"{topic}/first", "-m", "here", "-r", "-q", "1"], check=True, timeout=WAIT_S)
    words = [needed("mosquitto_sub"), *at, "-t", f"{topic}/#", "-q", "2", "-v", "-C", "5"]
    sub = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert sub.stdout.readline() == f"{topic}/first here\n"
    for qos in ("0", "1", "2"):
        done = subprocess.run(
            [needed("mosquitto_pub"), *at, "-t", f"{topic}/{qos}", "-m", f"body {qos}", "-q", qos], timeout=WAIT_S
        )
        assert done.returncode == 0
    subprocess.run(
        [needed("mosquitto_pub"), *at, "-t", f"{topic}/kept", "-m", "kept", "-r", "-q", "1"], check=True, timeout=WAIT_S
    )
    out, _ = sub.communicate(timeout=WAIT_S)
    for qos in ("0", "1", "2"):
        assert f"{topic}/{qos} body {qos}\n" in out
    late = subprocess.run(
        [needed("mosquitto_sub"), *at, "-t", f"{topic}/kept", "-C", "1"], capture_output=True, text=True, timeout=WAIT_S
    )
    assert late.stdout == "kept\n"


@TRANSPORTS
@VERSIONS
def test_mqttjs(everywhere, mqttjs, transport, version):
    host, port = everywhere.at(transport)
    scheme, path = {"tcp": ("mqtt", ""), "tls": ("mqtts", ""), "ws": ("ws", "/mqtt")}[transport]
    done = subprocess.run(
        [*mqttjs, f"{scheme}://{host}:{port}{path}", str(version), *([str(everywhere.ca)] if transport == "tls" else [])],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
