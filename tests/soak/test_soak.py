"""Many clients, and hostile ones, beside well-behaved clients."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time

import pytest
from wire import Client, packet, properties, text, unique

CLIENTS = 2_000


@pytest.mark.soak
async def test_two_thousand_clients(shared_broker):
    """Each subscribes to a topic of its own and one of all; every message arrives."""
    host, port = shared_broker.address()
    topic = unique()
    gate = asyncio.Semaphore(100)

    async def join(i):
        async with gate:
            reader, writer = await asyncio.open_connection(host, port)
            body = text("MQTT") + b"\x05\x02\0\x3c\0" + text(f"{topic}-{i}")
            subscribe = b"\0\x01\0" + text(f"{topic}/{i}") + b"\0" + text(f"{topic}/all") + b"\0"
            writer.write(packet(0x10, body) + packet(0x82, subscribe))
            head = await asyncio.wait_for(reader.readexactly(2), 30)
            await reader.readexactly(head[1])
            head = await asyncio.wait_for(reader.readexactly(2), 30)
            assert head[0] == 0x90
            await reader.readexactly(head[1])
            return reader, writer

    async def two(reader):
        seen = set()
        for _ in range(2):
            head = await asyncio.wait_for(reader.readexactly(2), 60)
            body = await reader.readexactly(head[1])
            seen.add(body[2 : 2 + body[1]].decode().rpartition("/")[2])
        return seen

    streams = await asyncio.gather(*(join(i) for i in range(CLIENTS)))
    publisher = await asyncio.to_thread(shared_broker.client)
    for i in range(CLIENTS):
        publisher.publish(f"{topic}/{i}", "x")
    publisher.publish(f"{topic}/all", "x")
    seen = await asyncio.gather(*(two(reader) for reader, _ in streams))
    assert seen == [{str(i), "all"} for i in range(CLIENTS)]
    for _, writer in streams:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in streams))
    shared_broker.clients.remove(publisher)
    publisher.socket.close()


def valid(r: random.Random) -> bytes:
    """A packet that a client may send."""
    topic, number = text(f"hostile/{r.randrange(5)}"), bytes([0, r.randrange(1, 9)])
    user = properties(user=[("k", "v")])
    return r.choice(
        [
            packet(0x30, topic + user + b"body"),
            packet(0x31, topic + properties(expiry=1) + b"kept"),
            packet(0x32, topic + number + b"\0body"),
            packet(0x34, topic + number + b"\0" + b"body" * r.randrange(99)),
            packet(0x40, number), packet(0x50, number), packet(0x62, number), packet(0x70, number),
            packet(0x82, number + b"\0" + topic + b"\x01"),
            packet(0x82, number + b"\0" + text("$share/g/hostile/#") + b"\x02"),
            packet(0xA2, number + b"\0" + topic),
            b"\xc0\0", b"\xe0\0", packet(0xF0, b"\x18\0"),
        ]
    )  # fmt: skip


def mutate(r: random.Random, raw: bytes) -> bytes:
    d = bytearray(raw)
    for _ in range(r.randrange(4)):
        if not d:
            break
        at = r.randrange(len(d))
        match r.randrange(6):
            case 0:
                d[at] ^= 1 << r.randrange(8)
            case 1:
                d[at] = r.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del d[at:]
            case 3:
                d[at:at] = r.randbytes(r.randrange(1, 9))
            case 4:
                d += d[at:]
            case 5:
                d[1:2] = r.choice((b"\x7f", b"\xff\x7f", b"\xff\xff\xff\x7f"))
    return bytes(d)


def storm(address, seed, until):
    r = random.Random(seed)
    while time.monotonic() < until:
        crowd = []
        for _ in range(50):
            c = Client(address, r.choice((4, 5)), f"hostile-{r.randrange(40)}", connect=False)
            crowd.append(c)
            out = c.connect_bytes(r.random() < 0.5) + b"".join(mutate(r, valid(r)) for _ in range(r.randrange(1, 12)))
            try:
                c.send(out if r.random() < 0.8 else mutate(r, out))
            except OSError:
                pass
        for c in crowd:
            c.socket.close()


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


@pytest.mark.soak
def test_hostile_bytes_beside_well_behaved_clients(make_broker, request):
    """No panic, no growth, and a pair of ordinary clients goes on undisturbed."""
    seconds = request.config.getoption("--hostile-seconds")
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nqueue_messages_max = 100\n")
    a, b, topic = broker.client(), broker.client(), unique()
    a.subscribe(topic)
    until = time.monotonic() + seconds
    storms = [threading.Thread(target=storm, args=(broker.address(), seed, until)) for seed in range(4)]
    for thread in storms:
        thread.start()
    n, first = 0, 0
    while time.monotonic() < until:
        b.deliver(topic, f"{n}", 1)
        a.message(topic, f"{n}")
        n += 1
        if not first and time.monotonic() > until - seconds * 0.7:
            first = resident_kib(broker.process.pid)
        time.sleep(0.005)
    for thread in storms:
        thread.join()
    assert n > 10
    assert resident_kib(broker.process.pid) < 2 * first + 20_000
    socket.create_connection(broker.address(), 5).close()
    a.ping()
    assert not [line for line in broker.log if "lane has failed" in line], "a contained panic is a panic"
