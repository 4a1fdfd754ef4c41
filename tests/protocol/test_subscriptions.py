"""Subscriptions, shared subscriptions, topics (sections 3.8 to 3.11, 4.7, 4.8), and what is forwarded (3.3)."""

import time

import pytest
from wire import PUBACK, unique


def test_overlapping_filters(broker):
    """[MQTT-3.3.4-2 to MQTT-3.3.4-5]: one copy, all identifiers, the highest QoS."""
    topic, c = unique(), broker.client()
    c.subscribe((f"{topic}/#", 1), subscription_id=1)
    c.subscribe((f"{topic}/+", 2), subscription_id=268_435_455)
    c.subscribe((f"{topic}/x", 0))
    broker.client().deliver(f"{topic}/x", "m", 2)
    m = c.message(f"{topic}/x")
    assert sorted(m.properties["subscription_id"]) == [1, 268_435_455]
    assert m.qos == 2
    c.quiet()


def test_identifier_from_a_client_is_not_forwarded(broker):
    """[MQTT-3.3.4-6]"""
    topic, w, c = unique(), broker.client(), broker.client()
    w.subscribe(topic)
    c.publish(topic, "x", subscription_id=9)
    assert "subscription_id" not in w.message(topic).properties


def test_no_local(broker):
    """[MQTT-3.8.3-3]"""
    topic, c = unique(), broker.client()
    c.subscribe((topic, 1 | 4))
    c.deliver(topic, "own", 1)
    broker.client().deliver(topic, "other", 1)
    c.message(topic, "other")


@pytest.mark.parametrize("version", [4, 5])
def test_codes_in_order(broker, version):
    """[MQTT-3.9.3-1, MQTT-3.8.4-6, MQTT-3.11.3-1]"""
    t, c = unique(), broker.client(version)
    assert c.subscribe((f"{t}/0", 0), (f"{t}/1", 1), (f"{t}/2", 2), (f"{t}/1b", 1)).codes == [0, 1, 2, 1]
    codes = c.unsubscribe(f"{t}/none", f"{t}/1", f"{t}/1").codes
    assert codes == ([0x11, 0, 0x11] if version == 5 else [])


def test_unsubscribed_gets_nothing(broker):
    topic, c, p = unique(), broker.client(), broker.client()
    c.subscribe(topic)
    c.unsubscribe(topic)
    p.deliver(topic, "x", 1)
    c.quiet()


@pytest.mark.parametrize("bits", [0x41, 0x80, 0x03, 0x30])
def test_reserved_option_bits(broker, bits):
    """[MQTT-3.8.3-5]"""
    c = broker.client()
    c.send(b"\x82\x07\0\x01\0\0\x01t" + bytes([bits]))
    c.refused(0x81, 0x82)


def test_options_of_version_5_are_errors_in_3_1_1(broker):
    c = broker.client(4)
    c.send(b"\x82\x06\0\x01\0\x01t\x05")
    c.refused()


@pytest.mark.parametrize("bad", ["a#", "a/#/b", "+a", "#/"])
def test_malformed_filters(broker, bad):
    """[MQTT-4.7.1-1, MQTT-4.7.1-2]: a malformed packet."""
    new = broker.client()
    new.send(b"\x82" + bytes([6 + len(bad)]) + b"\0\x01\0" + bytes([0, len(bad)]) + bad.encode() + b"\0")
    new.refused(0x81)
    old = broker.client(4)
    old.send(b"\x82" + bytes([5 + len(bad)]) + b"\0\x01" + bytes([0, len(bad)]) + bad.encode() + b"\0")
    old.refused()


# ---- shared


def counts(clients, wait=0.5):
    n = []
    for c in clients:
        got = 0
        while (p := c.read(wait)) is not None:
            if p.kind == 3:
                got += 1
                if p.qos == 1:
                    c.ack(PUBACK, p.id)
        n.append(got)
    return n


@pytest.mark.parametrize("qos", [0, 1])
def test_one_copy_in_each_group(broker, qos):
    """Section 4.8.2: two groups and an ordinary client; the work is spread."""
    t, p = unique(), broker.client()
    one, two, plain = [broker.client() for _ in range(2)], [broker.client() for _ in range(2)], broker.client()
    for c in one:
        c.subscribe((f"$share/a/{t}", 1))
    for c in two:
        c.subscribe((f"$share/b/{t}", 1))
    plain.subscribe((t, 1))
    for i in range(20):
        p.deliver(t, f"{i}", qos)
    n = counts([*one, *two, plain])
    assert (n[0] + n[1], n[2] + n[3], n[4]) == (20, 20, 20)
    assert min(n[:4]) >= 5


def test_unfinished_messages_go_to_another_member(broker):
    """QoS 1 unacknowledged when its session ends: to another member."""
    t, p = unique(), broker.client()
    leaves, stays = broker.client(), broker.client()
    leaves.subscribe((f"$share/g/{t}", 1))
    stays.subscribe((f"$share/g/{t}", 1))
    for i in range(10):
        p.deliver(t, f"{i}", 1)
    mine = [leaves.message(finish=False).payload for _ in range(5)]
    assert len(set(mine)) == 5
    leaves.drop()
    assert counts([stays], 1.0) == [10]


def test_a_group_waits_for_its_members(broker):
    """With a persistent member that is away messages wait, and go to whoever comes."""
    t, p = unique(), broker.client()
    c = broker.client(session_expiry=60)
    c.subscribe((f"$share/g/{t}", 1))
    c.disconnect()
    time.sleep(0.2)
    for i in range(5):
        p.deliver(t, f"{i}", 1)
    c = broker.client(5, c.id, clean=False, session_expiry=60)
    assert [c.message(t).payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_retained_messages_are_not_sent_to_groups(broker):
    """[MQTT-4.8.2] non-normative: shared subscriptions get no retained messages."""
    t, p, c = unique(), broker.client(), broker.client()
    p.deliver(t, "old", 1, retain=True)
    c.subscribe((f"$share/g/{t}", 1))
    c.quiet()
    p.deliver(t, "", 1, retain=True)


def test_no_local_with_share(broker):
    """[MQTT-3.8.3-4]"""
    c = broker.client()
    c.send(b"\x82\x10\0\x01\0\0\x0a$share/g/t\x05")
    c.refused(0x82)


@pytest.mark.parametrize("bad", ["$share//t", "$share/g+/t", "$share/g", "$share/g/"])
def test_malformed_share_names(broker, bad):
    """[MQTT-4.8.2-1, MQTT-4.8.2-2]"""
    c = broker.client()
    c.send(b"\x82" + bytes([6 + len(bad)]) + b"\0\x01\0" + bytes([0, len(bad)]) + bad.encode() + b"\x01")
    c.refused()


# ---- topics and forwarding


def test_alias(broker):
    """[MQTT-3.3.2-12]: set, used, set anew; subscribers see topics and not the alias."""
    t, w, c = unique(), broker.client(), broker.client()
    n = c.connack.properties["alias_maximum"]
    w.subscribe(f"{t}/#")
    c.deliver(f"{t}/1", "a", 1, alias=n)
    c.deliver("", "b", 1, alias=n)
    c.deliver(f"{t}/2", "c", 1, alias=n)
    c.deliver("", "d", 1, alias=n)
    for topic, payload in ((f"{t}/1", "a"), (f"{t}/1", "b"), (f"{t}/2", "c"), (f"{t}/2", "d")):
        assert "alias" not in w.message(topic, payload).properties


@pytest.mark.parametrize("alias", [0, 11])
def test_alias_out_of_range(broker, alias):
    """[MQTT-3.3.2-8, MQTT-3.3.2-9, MQTT-3.2.2-17]"""
    c = broker.client()
    assert c.connack.properties["alias_maximum"] == 10
    c.publish("t", "x", alias=alias)
    c.refused(0x94)


def test_alias_ends_with_the_connection(broker):
    """[MQTT-3.3.2-7]"""
    c = broker.client(session_expiry=60)
    c.deliver(unique(), "a", 1, alias=1)
    c.drop()
    c = broker.client(5, c.id, clean=False)
    c.publish("", "b", alias=1)
    c.refused(0x82)


def test_the_broker_assigns_aliases(broker):
    """[MQTT-3.1.2-26, MQTT-3.1.2-27]: only as many as the client allows, and each is introduced with its topic."""
    t, p = unique(), broker.client()
    c = broker.client(alias_maximum=2)
    c.subscribe(f"{t}/#")
    known = {}
    for i in range(9):
        p.publish(f"{t}/{i % 3}", f"{i}")
        m = c.message(payload=f"{i}")
        alias = m.properties.get("alias")
        if alias is not None:
            assert 1 <= alias <= 2
            if m.topic:
                known[alias] = m.topic
        assert (m.topic or known[alias]) == f"{t}/{i % 3}"
    assert len(known) == 2


def test_forwarded_unaltered(broker):
    """[MQTT-3.3.2-4, MQTT-3.3.2-17, MQTT-3.3.2-18, MQTT-3.3.1-3]: order, repeats, empty texts; DUP is cleared."""
    t, w, p = unique(), broker.client(), broker.client()
    w.subscribe(t)
    users = [("z", "1"), ("a", ""), ("z", "2"), ("", "e")]
    p.publish(t, "m", 1, dup=True, user=users, format=1, content_type="c", expiry=50, response_topic="r/t",
              correlation=b"\xff\0")  # fmt: skip
    m = w.message(t, "m")
    assert m.properties["user"] == users
    assert (m.properties["format"], m.properties["content_type"]) == (1, "c")
    assert (m.properties["response_topic"], m.properties["correlation"]) == ("r/t", b"\xff\0")
    assert not m.dup


def test_no_normalisation(broker):
    """[MQTT-4.7.3-4, MQTT-1.5.4-3]: different bytes are different topics, U+FEFF is kept."""
    t, c, p = unique(), broker.client(), broker.client()
    c.subscribe(f"{t}/\u00e9")
    p.deliver(f"{t}/e\u0301", "decomposed", 1)
    p.deliver(f"{t}/\ufeff\u00e9", "bom", 1)
    p.deliver(f"{t}/\u00e9", "composed", 1)
    c.message(f"{t}/\u00e9", "composed")


def test_no_matching_subscribers_is_said(broker):
    assert broker.client().deliver(unique(), "x", 1).code == 0x10


def test_subscribed_then_published_elsewhere_never_misses(broker):
    """The barrier: after SUBACK a publish by any other client arrives, whatever lane it is in."""
    for i in range(60):
        t, w, p = unique(), broker.client(), broker.client()
        w.subscribe((f"{t}/+" if i % 2 else f"{t}/x", 0))
        p.publish(f"{t}/x", "m")
        w.message(f"{t}/x", "m")
        w.socket.close()
        p.socket.close()


def test_order_from_many_publishers(broker):
    """Per publisher and topic, per subscriber, always."""
    t, w = unique(), broker.client()
    w.subscribe((f"{t}/#", 1))
    publishers = [broker.client() for _ in range(5)]
    for i in range(100):
        for n, p in enumerate(publishers):
            p.publish(f"{t}/{n}", f"{i}", 1)
    seen = [[] for _ in publishers]
    for _ in range(500):
        m = w.message()
        seen[int(m.topic.rpartition("/")[2])].append(int(m.payload))
    assert seen == [list(range(100))] * 5


def test_sys_is_not_for_clients(broker):
    """$SYS belongs to the broker."""
    p = broker.client()
    assert p.deliver("$SYS/broker/uptime", "forever", 1, retain=True).code == 0x87


def test_names_of_shared_subscriptions_are_not_published_to(broker):
    """Nobody could subscribe to such a name (section 4.8.2), so the publisher is told; other `$` names are allowed."""
    p = broker.client()
    assert p.deliver("$share/g/t", "lost", 1).code == 0x87
    assert p.deliver("$sharey/t", "free", 1).code == 0x10
