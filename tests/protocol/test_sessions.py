"""Sessions (sections 3.1.2.4, 3.1.2.11.2, 4.1, 4.4): what is kept, for how long, and how it goes on."""

import time

import pytest
from wire import PUBACK, PUBCOMP, PUBREC, PUBREL, unique


def test_session_present(broker):
    """[MQTT-3.2.2-2, MQTT-3.2.2-3]: 0 when new, after Clean Start, and after a connection without expiry."""
    c = broker.client(clean=False, session_expiry=60)
    assert not c.connack.present
    c.disconnect()
    c = broker.client(5, c.id, clean=False, session_expiry=60)
    assert c.connack.present
    c.disconnect()
    c = broker.client(5, c.id, clean=True)
    assert not c.connack.present
    c.disconnect()
    assert not broker.client(5, c.id, clean=False).connack.present


def test_session_present_in_3_1_1(broker):
    c = broker.client(4, clean=False)
    assert not c.connack.present
    c.disconnect()
    c = broker.client(4, c.id, clean=False)
    assert c.connack.present
    c.disconnect()
    broker.client(4, c.id, clean=True).disconnect()
    assert not broker.client(4, c.id, clean=False).connack.present


def test_session_expires(broker):
    c = broker.client(session_expiry=1)
    c.subscribe(unique())
    c.disconnect()
    time.sleep(2.2)
    assert not broker.client(5, c.id, clean=False).connack.present


def test_disconnect_changes_expiry(broker):
    """[MQTT-4.1.0-2]: the interval of the DISCONNECT counts."""
    c = broker.client(session_expiry=60)
    c.disconnect(0, session_expiry=1)
    time.sleep(2.2)
    assert not broker.client(5, c.id, clean=False).connack.present


def test_disconnect_cannot_revive_expiry(broker):
    """Section 3.14.2.2.2: from 0 to something is a protocol error, the session is not kept."""
    c = broker.client(session_expiry=0)
    c.send(b"\xe0\x07\0\x05\x11\0\0\0\x3c")
    c.refused(0x82)
    assert not broker.client(5, c.id, clean=False).connack.present


@pytest.mark.parametrize("version", [4, 5])
def test_offline_messages_in_order(broker, version):
    """[MQTT-4.5.0-1, MQTT-4.6.0-5]"""
    topic = unique()
    kept = {"session_expiry": 60} if version == 5 else {}
    c = broker.client(version, clean=False, **kept)
    c.subscribe(topic)
    c.disconnect()
    p = broker.client()
    for i in range(40):
        p.deliver(topic, f"{i}", 1 + i % 2)
    c = broker.client(version, c.id, clean=False, **kept)
    got = [c.message(topic).payload.decode() for _ in range(40)]
    assert got == [f"{i}" for i in range(40)]


def test_qos0_is_not_queued_unless_asked(broker, make_broker):
    for b, queued in ((broker, False), (make_broker("[listeners.tcp]\nport=0\n[mqtt]\nqueue_qos0=true"), True)):
        topic = unique()
        c = b.client(session_expiry=60)
        c.subscribe((topic, 0))
        c.disconnect()
        b.client().deliver(topic, "x", 1)
        c = b.client(5, c.id, clean=False)
        if queued:
            assert c.message(topic, "x").qos == 0
        else:
            c.quiet()


def test_unacknowledged_come_again_with_dup(broker):
    """[MQTT-4.4.0-1, MQTT-3.3.1-1]: not while connected; on resume the same ids in the same order with DUP."""
    topic, p = unique(), broker.client()
    c = broker.client(session_expiry=60)
    c.subscribe((topic, 1))
    for i in range(3):
        p.deliver(topic, f"{i}", 1)
    first = [c.message(topic, f"{i}", finish=False) for i in range(3)]
    assert not any(m.dup for m in first)
    c.quiet(1.0)
    c.drop()
    c = broker.client(5, c.id, clean=False, session_expiry=60)
    again = [c.message(topic, f"{i}") for i in range(3)]
    assert [m.id for m in again] == [m.id for m in first]
    assert all(m.dup for m in again)


def test_subscriptions_survive_with_their_options(broker):
    """[MQTT-3.1.2-5]: No Local, Retain As Published and the identifier."""
    topic = unique()
    c = broker.client(session_expiry=60)
    c.subscribe((topic, 1 | 4 | 8), subscription_id=77)
    c.disconnect()
    c = broker.client(5, c.id, clean=False, session_expiry=60)
    c.deliver(topic, "own", 1)
    c.quiet()
    broker.client().deliver(topic, "other", 1, retain=True)
    m = c.message(topic, "other")
    assert m.retain
    assert m.properties["subscription_id"] == [77]
    broker.client().deliver(topic, "", 1, retain=True)


def test_duplicate_before_pubrel_is_one_message(broker):
    """[MQTT-4.3.3-10]"""
    topic, w, p = unique(), broker.client(), broker.client()
    w.subscribe(topic)
    for dup in (False, True, True):
        p.publish(topic, "one", 2, number=9, dup=dup)
        assert p.want(PUBREC).id == 9
    p.ack(PUBREL, 9)
    assert p.want(PUBCOMP).id == 9
    w.message(topic, "one")
    w.quiet()


def test_duplicate_on_the_next_connection_is_one_message(broker):
    """[MQTT-4.3.3-10, MQTT-4.4.0-1]"""
    topic, w = unique(), broker.client()
    w.subscribe(topic)
    p = broker.client(session_expiry=60)
    p.publish(topic, "one", 2, number=9)
    p.want(PUBREC)
    p.drop()
    p = broker.client(5, p.id, clean=False, session_expiry=60)
    p.publish(topic, "one", 2, number=9, dup=True)
    p.want(PUBREC)
    p.ack(PUBREL, 9)
    p.want(PUBCOMP)
    w.message(topic, "one")
    w.quiet()


def test_identifier_is_free_after_pubcomp(broker):
    """[MQTT-4.3.3-12]"""
    topic, w, p = unique(), broker.client(), broker.client()
    w.subscribe(topic)
    for payload in ("one", "two"):
        p.deliver(topic, payload, 2, number=9)
        w.message(topic, payload)


def test_pubrel_not_publish_comes_again(broker):
    """[MQTT-4.3.3-6, MQTT-4.4.0-1]"""
    topic, p = unique(), broker.client()
    c = broker.client(session_expiry=60)
    c.subscribe(topic)
    p.deliver(topic, "one", 2)
    m = c.message(topic, "one", finish=False)
    c.ack(PUBREC, m.id)
    c.want(PUBREL)
    c.drop()
    c = broker.client(5, c.id, clean=False, session_expiry=60)
    again = c.want(PUBREL)
    assert (again.id, again.flags) == (m.id, 2)
    c.ack(PUBCOMP, m.id)
    c.quiet()


def test_pubrel_for_an_unknown_identifier(broker):
    """[MQTT-3.7.2-1, MQTT-4.3.3-11]: answered, the connection stays."""
    p = broker.client()
    p.ack(PUBREL, 4711)
    answer = p.want(PUBCOMP)
    assert answer.id == 4711
    assert answer.code in (0, 0x92)
    p.ping()


@pytest.mark.parametrize(("kind", "qos"), [(PUBACK, 2), (PUBREC, 1), (PUBCOMP, 1)])
def test_the_wrong_acknowledgement_is_a_protocol_error(broker, kind, qos):
    topic, c = unique(), broker.client()
    c.subscribe(topic)
    broker.client().deliver(topic, "x", qos)
    m = c.message(topic, finish=False)
    c.ack(kind, m.id)
    c.refused(0x82)


def test_refused_by_the_subscriber_is_gone(broker):
    """[MQTT-4.3.3-5]: a PUBREC or PUBACK of 0x80 or more ends the message."""
    topic, p = unique(), broker.client()
    c = broker.client(session_expiry=60, receive_maximum=1)
    c.subscribe(topic)
    for qos, kind in ((1, PUBACK), (2, PUBREC)):
        p.deliver(topic, "bad", qos)
        p.deliver(topic, "good", qos)
        c.ack(kind, c.message(topic, "bad", finish=False).id, 0x80)
        c.message(topic, "good")
    c.disconnect()
    broker.client(5, c.id, clean=False).quiet()
