"""Retained messages (section 3.3.1.3) and message expiry (3.3.2.3.3)."""

import struct
import time

import pytest
from wire import PINGRESP, PUBLISH, SUBACK, packet, text, unique


@pytest.mark.parametrize("version", [4, 5])
def test_empty_payload_clears(broker, version):
    """[MQTT-3.3.1-6, MQTT-3.3.1-7]: live subscribers get it with RETAIN 0, later ones nothing."""
    topic, p, w = unique(), broker.client(version), broker.client(version)
    p.deliver(topic, "old", 1, retain=True)
    w.subscribe(topic)
    assert w.message(topic, "old").retain
    p.deliver(topic, "", 1, retain=True)
    assert not w.message(topic, "").retain
    late = broker.client(version)
    late.subscribe(topic)
    late.quiet()


def test_without_the_flag_it_stays(broker):
    """[MQTT-3.3.1-8]"""
    topic, p = unique(), broker.client()
    p.deliver(topic, "old", 1, retain=True)
    p.deliver(topic, "new", 1)
    w = broker.client()
    w.subscribe(topic)
    w.message(topic, "old")
    p.deliver(topic, "", 1, retain=True)


def test_retain_handling(broker):
    """[MQTT-3.3.1-9, MQTT-3.3.1-10, MQTT-3.3.1-11]"""
    topic, p, w = unique(), broker.client(), broker.client()
    p.deliver(topic, "old", 1, retain=True)
    w.subscribe((topic, 1 | 0x20))
    w.quiet()
    w.subscribe((topic, 1 | 0x10))
    w.quiet()
    w.unsubscribe(topic)
    w.subscribe((topic, 1 | 0x10))
    w.message(topic, "old")
    for _ in range(2):
        w.subscribe((topic, 1))
        w.message(topic, "old")
    p.deliver(topic, "", 1, retain=True)


def test_retain_as_published(broker):
    """[MQTT-3.3.1-12, MQTT-3.3.1-13]"""
    topic, p, off, on = unique(), broker.client(), broker.client(), broker.client()
    off.subscribe((topic, 1))
    on.subscribe((topic, 1 | 8))
    p.deliver(topic, "m", 1, retain=True)
    assert not off.message(topic).retain
    assert on.message(topic).retain
    p.deliver(topic, "", 1, retain=True)


def test_expiry_counts_down(broker):
    """[MQTT-3.3.2-5, MQTT-3.3.2-6]: gone when over, else with the seconds that are left; none is invented."""
    topic, p = unique(), broker.client()
    away = broker.client(session_expiry=60)
    away.subscribe(f"{topic}/#")
    away.disconnect()
    time.sleep(0.3)  # what leaves before the broker has seen the end may come again, expired or not
    for name, expiry in (("short", {"expiry": 1}), ("long", {"expiry": 100}), ("ever", {})):
        p.deliver(f"{topic}/{name}", name, 1, retain=True, **expiry)
    time.sleep(2.3)
    late = broker.client()
    late.subscribe(f"{topic}/#")
    for c in (late, broker.client(5, away.id, clean=False)):
        left = {m.payload: m.properties.get("expiry") for m in (c.message(), c.message())}
        assert left.keys() == {b"long", b"ever"}
        assert 90 <= left[b"long"] <= 98
        assert left[b"ever"] is None
        c.quiet()
    for name in ("long", "ever"):
        p.deliver(f"{topic}/{name}", "", 1, retain=True)


def test_dollar_topics_hide_from_wildcards(broker):
    """[MQTT-4.7.2-1]"""
    name, w, p = unique(), broker.client(), broker.client()
    w.subscribe((f"+/{name}", 0))
    w.subscribe(("#", 0x20))
    p.publish(f"$hidden/{name}", "no")
    p.publish(f"seen/{name}", "yes")
    seen = [w.message().topic]
    while seen[-1] != f"seen/{name}":
        seen.append(w.message().topic)
    assert not [t for t in seen if t.startswith("$")]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_large_replay_is_complete(broker, qos):
    """A window at a time, never cut off by the queue's bound."""
    topic, p = unique(), broker.client()
    n = 3_000
    for i in range(n):
        p.publish(f"{topic}/{i}", "x", 0, retain=True)
    p.ping()
    w = broker.client(receive_maximum=50)
    w.subscribe((f"{topic}/#", qos))
    # published with QoS 0, so they come with QoS 0
    assert len({w.message().topic for _ in range(n)}) == n
    w.quiet()
    for i in range(n):
        p.publish(f"{topic}/{i}", "", 0, retain=True)
    p.ping()


def test_a_replay_with_qos_1_keeps_to_the_window(broker):
    topic, p = unique(), broker.client()
    n = 300
    for i in range(n):
        p.deliver(f"{topic}/{i}", "x", 1, retain=True)
    w = broker.client(receive_maximum=5)
    w.subscribe((f"{topic}/#", 1))
    held = [w.message(finish=False) for _ in range(5)]
    w.quiet()
    topics = {m.topic for m in held}
    for m in held:
        w.ack(4, m.id)
    topics |= {w.message().topic for _ in range(n - 5)}
    assert len(topics) == n
    for i in range(n):
        p.publish(f"{topic}/{i}", "", 0, retain=True)
    p.ping()


def test_a_live_message_is_not_followed_by_an_older_one(broker):
    """Subscribe race: whoever sees a newer message never gets the older retained one after it."""
    topic, p = unique(), broker.client()
    p.deliver(topic, "0", 1, retain=True)
    for i in range(1, 30):
        w = broker.client()
        p.publish(topic, f"{i}", 1, retain=True)
        w.subscribe((topic, 1))
        p.want(4)
        got = [int(w.message(topic).payload)]
        while got[-1] < i:
            got.append(int(w.message(topic).payload))
        assert got == sorted(got)
        w.socket.close()
    p.deliver(topic, "", 1, retain=True)


def test_bound_of_retained_messages(make_broker):
    """Quota: 0x97 for the publisher, the store stays as it was."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nretained_max = 3\n")
    p = broker.client()
    codes = [p.deliver(f"t/{i}", "x", 1, retain=True).code for i in range(5)]
    assert [c for c in codes if c < 0x80] == [0x10] * 3
    assert codes[3:] == [0x97, 0x97]
    assert p.deliver("t/0", "again", 1, retain=True).code < 0x80
    w = broker.client()
    w.subscribe("#")
    assert {w.message().topic for _ in range(3)} == {"t/0", "t/1", "t/2"}


def test_retain_can_be_turned_off(make_broker):
    """[MQTT-3.2.2-14]: 0x9A."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[mqtt]\nretain_available = false\n")
    c = broker.client()
    assert c.connack.properties["retain_available"] == 0
    c.publish("t", "x", retain=True)
    c.refused(0x9A)


def test_a_replay_is_never_cut_however_slowly_it_is_read(make_broker):
    """Also at QoS 0, whose live messages a slow reader loses (3.3.1.3; design, "Retained")."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\npending_output_bytes_max = 65536\n")
    count, filler = 6_000, "x" * 200
    with broker.client() as owner:
        for n in range(count):
            owner.send(owner.publish_bytes(f"kept/{n}", f"{n} {filler}", qos=0, retain=True))
        owner.send(b"\xc0\x00")
        owner.want(PINGRESP, 20)
    with broker.client() as reader:
        reader.send(packet(0x82, struct.pack(">H", 1) + b"\0" + text("kept/#") + b"\0"))
        time.sleep(0.5)
        reader.want(SUBACK)
        found = {int(reader.want(PUBLISH).payload.split()[0]) for _ in range(count)}
    assert len(found) == count
