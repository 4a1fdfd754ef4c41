"""Wills (section 3.1.2.5): when they are sent, when not, and with what."""

import time

import pytest
from wire import unique


@pytest.fixture
def watched(broker):
    """A topic and a client that watches it."""
    topic = unique("will")
    watcher = broker.client()
    watcher.subscribe(topic)
    return topic, watcher


def test_sent_with_all_its_properties(broker, watched):
    """[MQTT-3.1.2-8, MQTT-3.1.3-10]: user properties in order, with repeats."""
    topic, watcher = watched
    users = [("b", "1"), ("a", "2"), ("b", "1")]
    will = dict(topic=topic, payload=b"lost", qos=1, format=1, content_type="text", response_topic="r",
                correlation=b"\x00\xff", expiry=100, user=users)  # fmt: skip
    broker.client(will=will).drop()
    m = watcher.message(topic, b"lost")
    assert m.qos == 1
    assert m.properties["user"] == users
    assert m.properties["correlation"] == b"\x00\xff"
    assert m.properties["expiry"] == 100
    assert (m.properties["format"], m.properties["content_type"], m.properties["response_topic"]) == (1, "text", "r")


@pytest.mark.parametrize("version", [4, 5])
def test_not_sent_after_disconnect(broker, watched, version):
    """[MQTT-3.14.4-3]"""
    topic, watcher = watched
    broker.client(version, will=dict(topic=topic)).disconnect()
    watcher.quiet()


def test_sent_on_disconnect_with_will(broker, watched):
    """[MQTT-3.1.2-8], code 0x04."""
    topic, watcher = watched
    broker.client(will=dict(topic=topic)).disconnect(0x04)
    watcher.message(topic, b"gone")


@pytest.mark.parametrize("version", [4, 5])
def test_sent_when_the_broker_closes_for_an_error(broker, watched, version):
    topic, watcher = watched
    broker.client(version, will=dict(topic=topic)).send(b"\x36\x03\0\x01x")
    watcher.message(topic, b"gone")


@pytest.mark.parametrize("retain", [0, 1])
def test_retain_flag(broker, watched, retain):
    """[MQTT-3.1.2-14, MQTT-3.1.2-15]"""
    topic, watcher = watched
    broker.client(will=dict(topic=topic, retain=retain)).drop()
    watcher.message(topic)
    late = broker.client()
    late.subscribe(topic)
    if retain:
        assert late.message(topic).retain
        late.deliver(topic, b"", 1, retain=True)
    else:
        late.quiet()


def test_delay_is_cancelled_by_return(broker, watched):
    """[MQTT-3.1.3-9]: resumed before the delay: not sent, and not later either [MQTT-3.1.2-10]."""
    topic, watcher = watched
    c = broker.client(clean=False, will=dict(topic=topic, will_delay=1), session_expiry=60)
    c.drop()
    time.sleep(0.3)
    again = broker.client(5, c.id, clean=False, session_expiry=60)
    assert again.connack.present
    watcher.quiet(1.5)
    again.drop()
    watcher.quiet()


def test_delay_passes(broker, watched):
    topic, watcher = watched
    broker.client(will=dict(topic=topic, will_delay=1), session_expiry=60).drop()
    watcher.quiet(0.5)
    watcher.message(topic, b"gone")


def test_delay_is_cut_short_by_session_expiry(broker, watched):
    """[MQTT-3.1.2-8]: sent when the session ends."""
    topic, watcher = watched
    begin = time.monotonic()
    broker.client(will=dict(topic=topic, will_delay=60), session_expiry=1).drop()
    watcher.message(topic, b"gone")
    assert time.monotonic() - begin < 20


def test_clean_start_ends_the_session_and_sends_the_will(broker, watched):
    """Section 3.1.4: "if Clean Start is 1 the Will Message is sent because the Session ends"; once."""
    topic, watcher = watched
    c = broker.client(will=dict(topic=topic, will_delay=1), session_expiry=60)
    c.drop()
    time.sleep(0.2)
    broker.client(5, c.id, clean=True)
    watcher.message(topic, b"gone")
    watcher.quiet(1.5)


def test_a_takeover_with_clean_start_sends_a_will_that_would_wait(broker, watched):
    """Section 3.1.4, as above: the session of the connection that is closed ends with it."""
    topic, watcher = watched
    c = broker.client(will=dict(topic=topic, will_delay=60), session_expiry=60)
    broker.client(5, c.id, clean=True)
    watcher.message(topic, b"gone")


def test_takeover_sends_the_will_without_delay(broker, watched):
    """Section 3.1.4: the old network connection is closed, so its will is due."""
    topic, watcher = watched
    c = broker.client(will=dict(topic=topic), session_expiry=60)
    broker.client(5, c.id, clean=False, session_expiry=60)
    watcher.message(topic, b"gone")


def test_qos_bits_without_will_flag(broker):
    """[MQTT-3.1.2-11]"""
    c = broker.client(connect=False)
    c.send(c.connect_bytes(flags=0x0A))
    c.refused()


def test_retain_bit_without_will_flag(broker):
    c = broker.client(connect=False)
    c.send(c.connect_bytes(flags=0x22))
    c.refused()
