"""What each ack class promises, and in which order effects happen: fdatasync is held back while we look.

A small library is put before libc (LD_PRELOAD): fdatasync and fsync wait while the file GATE is there. Linux only.
"""

import contextlib
import shutil
import subprocess
import sys

import pytest
from conftest import start
from wire import PUBACK, PUBCOMP, PUBREC, PUBREL, SUBACK, Client, packet, text, unique

FOREVER = 0xFFFFFFFF
CODE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void gate(void) {
    const char *path = getenv("GATE");
    while (path && access(path, F_OK) == 0) usleep(5000);
}
int fdatasync(int fd) {
    gate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
int fsync(int fd) {
    gate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""
CONFIG = """
[durability.ack_filters]
"least/#" = "durable"
[listeners.durable]
port = 0
[listeners.memory]
port = 0
ack = "memory"
[listeners.replicated]
port = 0
ack = "replicated"
[listeners.lower]
port = 0
ack_lower = true
"""
DOORS = ("durable", "memory", "replicated", "lower")

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and cc")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    (folder / "gate.c").write_text(CODE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "gate.so", folder / "gate.c", "-ldl"], check=True)
    return folder / "gate.so"


class Gated:
    """A broker whose flushes can be held back."""

    def __init__(self, library, folder, config=CONFIG):
        self.gate = folder / "gate"
        (folder / "roost.toml").write_text(config)
        words = ["--config", str(folder / "roost.toml"), "--data", str(folder / "data"), "--no-admin", "--lanes", "1"]
        preload = {"LD_PRELOAD": str(library), "GATE": str(self.gate)}
        self.broker = start(words, preload)
        self.clients = []

    def client(self, door="durable", client_id=None, version=5, **more):
        address = self.broker.address("mqtt", DOORS.index(door) if len(self.broker.listening) > 1 else 0)
        return Client(address, version, client_id or unique("c"), made=self.clients, **more)

    @contextlib.contextmanager
    def held(self):
        """No flush returns in here."""
        self.gate.touch()
        try:
            yield
        finally:
            self.gate.unlink()

    def reader(self, topic, away=True, options=2, **more):
        """A session that outlives its connection and wants a topic."""
        c = self.client(session_expiry=FOREVER, **more)
        c.subscribe((topic, options))
        if away:
            c.disconnect()
        return c

    def end(self):
        with contextlib.suppress(FileNotFoundError):
            self.gate.unlink()
        for client in self.clients:
            client.socket.close()
        assert self.broker.stop() == 0


@pytest.fixture
def gated(library, tmp_path):
    made = []

    def make(config=CONFIG):
        made.append(Gated(library, tmp_path, config))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def doors(gated):
    return gated()


@pytest.mark.parametrize(
    ("door", "topic", "said", "waits"),
    [
        ("durable", "t", None, True),
        ("replicated", "t", None, True),
        ("memory", "t", None, False),
        ("memory", "t", "durable", True),
        ("memory", "t", "replicated", True),
        ("memory", "least/t", None, True),
        ("durable", "t", "memory", True),
        ("lower", "t", None, True),
        ("lower", "t", "memory", False),
        ("lower", "least/t", "memory", True),
    ],
)
def test_who_waits_for_the_flush(doors, door, topic, said, waits):
    """Listener, then the message (up always, down where the listener lets it), and the filter as the least."""
    doors.reader(topic)
    p = doors.client(door)
    more = {"user": [("roost-ack", said)]} if said else {}
    with doors.held():
        number = p.publish(topic, "x", 1, **more)
        if waits:
            p.quiet(0.3)
        else:
            assert p.want(PUBACK).id == number
    if waits:
        ack = p.want(PUBACK)
        assert (ack.id, ack.code < 0x80) == (number, True)


def test_qos_2_is_at_least_durable(doors):
    """Class `memory` does not apply to QoS 2 into a session that outlives its connection."""
    doors.reader("t")
    p = doors.client("memory", session_expiry=FOREVER)
    with doors.held():
        number = p.publish("t", "x", 2)
        p.quiet(0.3)
    assert p.want(PUBREC).id == number
    with doors.held():
        p.ack(PUBREL, number)
        p.quiet(0.3)
    assert p.want(PUBCOMP).id == number


def test_what_nobody_keeps_is_answered_at_once(doors):
    c = doors.client()
    c.subscribe("t")
    p = doors.client()
    with doors.held():
        for qos in (1, 2):
            p.deliver("t", "x", qos)
            c.message("t", "x")
        assert p.deliver("nobody", "x", 1).code == 0x10


def test_sessions_and_subscriptions_wait_too(doors):
    with doors.held():
        c = doors.client(client_id="new", session_expiry=FOREVER, expect=None)
        c.quiet(0.3)
    assert c.read(10).code == 0
    with doors.held():
        c.send(packet(0x82, b"\0\7\0" + text("t") + b"\1"))
        c.quiet(0.3)
    assert c.want(SUBACK).codes == [1]


@pytest.mark.parametrize("after_safe", [False, True])
def test_delivery_of_qos_1_waits_only_if_asked(gated, after_safe):
    """Record safe, then ack; a connected subscriber has QoS 1 at once unless `deliver_after_safe`."""
    g = gated(f"[listeners.a]\nport = 0\n[durability]\ndeliver_after_safe = {str(after_safe).lower()}\n")
    c = g.reader("t", away=False)
    p = g.client()
    with g.held():
        p.publish("t", "x", 1)
        p.quiet(0.3)
        if after_safe:
            c.quiet(0.2)
        else:
            c.message("t", "x")
    if after_safe:
        c.message("t", "x")
    p.want(PUBACK)


def test_delivery_of_qos_2_waits(doors):
    """PUBLISH waits for its record, PUBREL for the record of PUBREC."""
    c = doors.reader("t", away=False)
    p = doors.client()
    with doors.held():
        p.publish("t", "x", 2)
        c.quiet(0.3)
    m = c.message("t", "x", finish=False)
    p.want(PUBREC)
    with doors.held():
        c.ack(PUBREC, m.id)
        c.quiet(0.3)
    assert c.want(PUBREL).id == m.id
    c.ack(PUBCOMP, m.id)


def test_a_retained_message_waits(doors):
    p = doors.client()
    with doors.held():
        number = p.publish("kept", "x", 1, retain=True)
        p.quiet(0.3)
    assert p.want(PUBACK).id == number


def test_flushing_now_and_then(gated):
    """With `sync_every_ms` an answer does not wait for the flush; without the machine failing nothing is lost."""
    g = gated("[listeners.a]\nport = 0\n[durability]\nsync_every_ms = 60000\n")
    c = g.reader("t")
    p = g.client()
    with g.held():
        assert p.deliver("t", "x", 1).code < 0x80
    g.broker.process.kill()
    g.broker.stop()
    g.broker = start(["--config", str(g.gate.parent / "roost.toml"), "--data", g.broker.data, "--no-admin"])
    again = g.client(client_id=c.id, clean=False, session_expiry=FOREVER)
    assert again.connack.present
    again.message("t", "x")
