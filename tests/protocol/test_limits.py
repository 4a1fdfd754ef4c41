"""Bounds: what is refused says so, what is dropped is counted, and nobody else is disturbed."""

import json
import time
import urllib.request

import pytest
from wire import CONNACK, Client, packet, text, unique


def test_connections(make_broker):
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nconnections_max = 2\n")
    one = broker.client()
    broker.client(4)
    assert broker.client(expect=None).want(CONNACK).code == 0x97
    assert broker.client(4, expect=None).want(CONNACK).code == 3
    one.disconnect()
    time.sleep(0.3)
    broker.client().ping()


def test_connections_of_a_listener(make_broker):
    broker = make_broker("[listeners.tcp]\nport = 0\nconnections_max = 1\n[listeners.two]\nport = 0\n")
    broker.client()
    assert broker.client(expect=None).want(CONNACK).code == 0x97
    with Client(broker.address("mqtt", 1)) as other:
        other.ping()


def test_connections_of_an_address(make_broker):
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nconnections_per_address_max = 2\n")
    broker.client()
    broker.client()
    broker.client(connect=False).closed()
    with Client(broker.address(), source="127.0.0.2") as other:
        other.ping()


@pytest.mark.parametrize("version", [4, 5])
def test_topics(broker, version):
    """Deeper than 201 levels: refused."""
    c = broker.client(version)
    c.publish("/" * 201, "x")
    c.refused(0x81)
    c = broker.client(version)
    c.send(packet(0x82, b"\0\x01" + (b"\0" if version == 5 else b"") + text("/" * 201) + b"\0"))
    c.refused(0x81)
    c = broker.client(version)
    assert c.subscribe(("/" * 200, 1)).codes == [1]
    c.deliver("/" * 200, "x", 1)
    c.message("/" * 200, "x")


def test_payloads(make_broker):
    """Too large: dropped and said, the connection stays; a will is refused at once."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\npayload_bytes_max = 3\n")
    c = broker.client()
    c.subscribe("t")
    for qos in (0, 1, 2):
        answer = c.deliver("t", "long", qos)
        assert answer is None or answer.code == 0x95
        c.deliver("t", "ok", qos)
        c.message("t", "ok")
    broker.client(will={"topic": "t", "payload": b"long"}, expect=0x95)


def test_subscriptions(make_broker):
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nsubscriptions_max = 2\n")
    c = broker.client()
    assert c.subscribe("a", "b", "c", "a").codes == [2, 2, 0x97, 2]


@pytest.mark.parametrize(("policy", "kept"), [("drop_newest", "01"), ("drop_oldest", "34"), ("reject", "01")])
def test_queues(make_broker, policy, kept):
    """Full: by policy, and never silent."""
    broker = make_broker(
        f'[listeners.tcp]\nport = 0\n[limits]\nqueue_messages_max = 2\nqueue_policy = "{policy}"\n', "--admin-port=0"
    )
    topic, p = unique(), broker.client()
    c = broker.client(session_expiry=60)
    c.subscribe((topic, 1))
    c.disconnect()
    time.sleep(0.2)
    codes = [p.deliver(topic, f"{i}", 1).code for i in range(5)]
    assert codes == ([0, 0, 0x97, 0x97, 0x97] if policy == "reject" else [0] * 5)
    c = broker.client(5, c.id, clean=False)
    assert "".join(c.message().payload.decode() for _ in range(2)) == kept
    c.quiet()
    host, port = broker.address("http")
    text = until_served(f"http://{host}:{port}/metrics").decode()
    assert 'roostmq_dropped_messages_total{reason="queue_full"} 3.0' in text


def until_served(url):
    """The web stack is imported after the broker serves."""
    until = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_reject_counts_only_when_nobody_took_it(make_broker):
    """One full queue must not make a publisher repeat to a thousand others."""
    broker = make_broker('[listeners.tcp]\nport = 0\n[limits]\nqueue_messages_max = 1\nqueue_policy = "reject"\n')
    topic, p, here = unique(), broker.client(), broker.client()
    c = broker.client(session_expiry=60)
    for client in (c, here):
        client.subscribe((topic, 1))
    c.disconnect()
    time.sleep(0.2)
    for i in range(3):
        assert p.deliver(topic, f"{i}", 1).code == 0
        here.message(topic, f"{i}")


@pytest.mark.parametrize("where", ["memory", "data"])
def test_the_queues_of_one_user(make_broker, tmp_path, where):
    """All persistent sessions of a user together; what is received or ended makes room again, another user is not in it."""
    config = "[listeners.tcp]\nport = 0\n[limits]\nqueue_user_messages_max = 4\n"
    broker = make_broker(config, *(["--memory"] if where == "memory" else ["--data", str(tmp_path / "data")]))
    topic, p = unique(), broker.client()
    ann = {f"{topic}-a{i}": "ann" for i in range(2)}
    bob = {f"{topic}-b": "bob"}
    for client_id, user in {**ann, **bob}.items():
        c = broker.client(5, client_id, username=user, session_expiry=60)
        c.subscribe((topic, 1))
        c.disconnect()
    time.sleep(0.2)

    def waiting(client_id, user, count):
        c = broker.client(5, client_id, username=user, clean=False, session_expiry=60)
        got = [c.message().payload.decode() for _ in range(count)]
        c.quiet()
        c.disconnect()
        time.sleep(0.2)
        return "".join(got)

    for _ in range(2):
        for i in range(5):
            assert p.deliver(topic, f"{i}", 1).code == 0
        assert waiting(f"{topic}-b", "bob", 4) == "0123"
        assert [waiting(client_id, user, 2) for client_id, user in ann.items()] == ["01", "01"]
    p.deliver(topic, "a", 1)
    broker.client(5, f"{topic}-a0", username="ann", clean=True).disconnect()  # ends with one message in it
    time.sleep(0.2)
    for i in range(5):
        p.deliver(topic, f"{i}", 1)
    assert waiting(f"{topic}-a1", "ann", 4) == "a012"


def test_a_slow_reader_harms_nobody(make_broker):
    """QoS 0 towards a client that does not read is dropped and counted; others get everything."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\npending_output_bytes_max = 100000\n", "--admin-port=0")
    topic, p = unique(), broker.client()
    slow, quick = broker.client(), broker.client()
    slow.subscribe((topic, 0))
    quick.subscribe((topic, 0))
    body = b"z" * 60_000
    for i in range(300):
        p.publish(topic, body)
        quick.message(topic, body)
        if i % 50 == 0:
            p.ping()
    host, port = broker.address("http")
    info = json.loads(until_served(f"http://{host}:{port}/api/v1/info"))
    assert info["counters"]["dropped_slow_reader"] > 50
    p.ping()
