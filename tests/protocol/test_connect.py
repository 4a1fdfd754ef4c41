"""CONNECT and CONNACK (sections 3.1, 3.2): who is let in, who is refused and how, takeover, keep alive."""

import time

import pytest
from wire import CONNACK, PINGRESP, PUBACK, SUBACK, unique

V = pytest.mark.parametrize("version", [3, 4, 5])


@V
def test_every_version_connects(broker, version):
    broker.client(version).ping()


def test_first_packet_must_be_connect(broker):
    """[MQTT-3.1.0-1]: closed without an answer."""
    c = broker.client(connect=False)
    c.send(b"\xc0\0")
    c.closed()


@pytest.mark.parametrize("start", [b"\x30", b"\x10\xff\xff\x3f"], ids=["not a connect", "too large a connect"])
def test_a_stranger_is_closed_at_its_first_bytes(broker, start):
    """Nobody is buffered for who has not said who it is (docs/decisions/0003): no second byte is waited for."""
    c = broker.client(connect=False)
    c.send(start)
    c.closed()


@V
def test_second_connect_is_refused(broker, version):
    """[MQTT-3.1.0-2]"""
    c = broker.client(version)
    c.send(c.connect_bytes())
    c.refused(0x82)


@pytest.mark.parametrize("version", [4, 5])
def test_reserved_flag_is_refused(broker, version):
    """[MQTT-3.1.2-3]"""
    c = broker.client(version, connect=False)
    c.send(c.connect_bytes(flags=3))
    c.refused()


def test_unknown_level(broker):
    """[v3 MQTT-3.1.2-2]: CONNACK 0x01, close."""
    c = broker.client(4, connect=False)
    c.version = 9
    raw = c.connect_bytes()
    c.version = 4
    c.send(raw)
    assert c.want(CONNACK).code == 1
    c.closed()


def test_empty_id_needs_a_clean_session_in_3_1_1(broker):
    """[v3 MQTT-3.1.3-8]"""
    c = broker.client(4, "", clean=False, expect=2)
    c.closed()


def test_empty_id_gets_an_assigned_one(broker):
    """[MQTT-3.1.3-7, MQTT-3.2.2-16]: unique, and the session is found again under it."""
    one = broker.client(5, "", clean=False, session_expiry=60)
    two = broker.client(5, "")
    assigned = one.connack.properties["assigned_id"]
    assert assigned and assigned != two.connack.properties["assigned_id"]
    one.disconnect()
    assert broker.client(5, assigned, clean=False).connack.present


@pytest.mark.parametrize("version", [4, 5])
def test_takeover(broker, version):
    """[MQTT-3.1.4-3]: the old connection hears 0x8E and ends, the new one has the session."""
    kept = {"session_expiry": 60} if version == 5 else {}
    old = broker.client(version, clean=False, **kept)
    new = broker.client(version, old.id, clean=False, **kept)
    assert new.connack.present
    old.refused(0x8E)
    new.ping()


def test_everything_pipelined_before_connack(broker):
    """[MQTT-3.2.0-1]: CONNECT, SUBSCRIBE, PUBLISH, PINGREQ in one segment: CONNACK first, then all answered."""
    c, topic = broker.client(connect=False), unique()
    subscribe = b"\x82" + bytes([6 + len(topic)]) + b"\0\x01\0" + bytes([0, len(topic)]) + topic.encode() + b"\x01"
    c.send(c.connect_bytes() + subscribe + c.publish_bytes(topic, "x", 1, number=7) + b"\xc0\0")
    assert c.want(CONNACK).code == 0
    assert c.want(SUBACK).codes == [1]
    kinds = set()
    for _ in range(3):
        p = c.read(5)
        assert p is not None
        kinds.add(p.kind)
    assert kinds == {3, PUBACK, PINGRESP}


def test_connect_byte_by_byte(broker):
    """[MQTT-4.2-1]"""
    c = broker.client(connect=False)
    for b in c.connect_bytes():
        c.send(bytes([b]))
    assert c.want(CONNACK).code == 0


@pytest.mark.parametrize(
    "section",
    [
        b"\x06\x21\0\x05\x21\0\x05",
        b"\x03\x21\0\0",
        b"\x05\x27\0\0\0\0",
        b"\x02\x17\x02",
        b"\x02\x19\x02",
        b"\x03\x16\0\0",
    ],
    ids=["receive maximum twice", "receive maximum 0", "packet size 0", "problem 2", "response 2", "data, no method"],
)
def test_wrong_properties_are_refused(broker, section):
    """[MQTT-3.1.4-1] and the sections of each property: 0x82."""
    c = broker.client(connect=False)
    body = b"\0\x04MQTT\x05\x02\0\x3c" + section + b"\0\x01x"
    c.send(bytes([0x10, len(body)]) + body)
    c.refused(0x82)


def test_unknown_authentication_method(broker):
    """[MQTT-4.12.0-1]: 0x8C."""
    c = broker.client(auth_method="SCRAM-SHA-1", expect=0x8C)
    c.closed()


def test_auth_without_method_is_refused(broker):
    """[MQTT-4.12.0-6]"""
    c = broker.client()
    c.send(b"\xf0\x02\x18\0")
    c.refused(0x82)


@pytest.mark.parametrize("version", [4, 5])
def test_keep_alive_counts_what_the_client_sends(broker, version):
    """[MQTT-3.1.2-22]: closed after 1.5 times the interval, although messages go to it all the time."""
    c, p, topic = broker.client(version, keep_alive=1), broker.client(), unique()
    c.subscribe((topic, 0))
    begin = time.monotonic()
    with pytest.raises(AssertionError):
        while time.monotonic() < begin + 10:
            p.publish(topic, "noise")
            packet = c.read(0.2)
            assert packet is None or packet.kind == 3
    assert time.monotonic() - begin >= 1.4


def test_keep_alive_is_fed_by_pings(broker):
    c = broker.client(keep_alive=1)
    for _ in range(4):
        time.sleep(0.6)
        c.ping()


def test_server_keep_alive_and_limits_are_told(make_broker):
    """[MQTT-3.2.2-21]: a longer keep alive is cut and said so; 3.1.1 cannot be told and is refused."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nkeep_alive_max_s = 30\nreceive_maximum = 7\n")
    c = broker.client(keep_alive=60)
    assert c.connack.properties["server_keep_alive"] == 30
    assert c.connack.properties["receive_maximum"] == 7
    assert "server_keep_alive" not in broker.client(keep_alive=20).connack.properties
    broker.client(4, keep_alive=60, expect=2)


def test_request_response_information(make_broker):
    """Section 3.1.2.11.6: given to who asks."""
    broker = make_broker('[listeners.tcp]\nport = 0\n[mqtt]\nresponse_information = "answers/%c"\n')
    asked = broker.client(5, "me", request_response=1)
    assert asked.connack.properties["response_information"] == "answers/me"
    assert "response_information" not in broker.client().connack.properties


def test_reason_strings_only_if_wanted(broker):
    """[MQTT-3.1.2-29]: a client that asks for no problem information gets no reason string."""
    for wanted in (1, 0):
        c = broker.client(request_problem=wanted)
        c.send(c.connect_bytes())
        p = c.read(5)
        assert p.code == 0x82
        assert ("reason" in p.properties) == bool(wanted)


def test_no_connect_in_time(make_broker):
    """A socket that says nothing is closed."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nconnect_timeout_ms = 300\n")
    broker.client(connect=False).closed()


def test_3_1_has_no_session_present(broker):
    one = broker.client(3, clean=False)
    one.disconnect()
    assert not broker.client(3, one.id, clean=False).connack.present
    broker.client(3, one.id, clean=True)
