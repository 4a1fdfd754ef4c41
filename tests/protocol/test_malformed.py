"""Malformed packets (sections 1.5, 2, 4.13): the right code, the connection closed, nobody else disturbed."""

import pytest

CASES = {
    "wildcard in a topic name [MQTT-3.3.2-2]": (b"\x30\x06\0\x03a/#\0", (0x81, 0x82, 0x90)),
    "dup with qos 0 [MQTT-3.3.1-2]": (b"\x38\x04\0\x01t\0", (0x81,)),
    "qos 3 [MQTT-3.3.1-4]": (b"\x36\x06\0\x01t\0\x01\0", (0x81,)),
    "pubrel flags [MQTT-3.6.1-1]": (b"\x60\x02\0\x01", (0x81,)),
    "subscribe flags [MQTT-3.8.1-1]": (b"\x80\x07\0\x01\0\0\x01t\0", (0x81,)),
    "five byte length": (b"\x30\xff\xff\xff\xff\x01", (0x81,)),
    "surrogate [MQTT-1.5.4-1]": (b"\x30\x07\0\x04t\xed\xa0\x80\0", (0x81,)),
    "overlong utf-8 [MQTT-1.5.4-1]": (b"\x30\x05\0\x02\xc0\xaf\0", (0x81,)),
    "null in a topic": (b"\x30\x05\0\x02t\0\0", (0x81, 0x90)),
    "null in a filter [MQTT-1.5.4-2]": (b"\x82\x08\0\x01\0\0\x02t\0\0", (0x81,)),
    "identifier 0": (b"\x32\x06\0\x01t\0\0\0", (0x81, 0x82)),
    "no filter": (b"\x82\x03\0\x01\0", (0x81, 0x82)),
    "no topic and no alias": (b"\x30\x03\0\0\0", (0x82,)),
    "unknown property": (b"\x30\x06\0\x01t\x02\x7f\0", (0x81,)),
    "property of another packet": (b"\x30\x06\0\x01t\x02\x24\x01", (0x81, 0x82)),
    "property twice": (b"\x30\x08\0\x01t\x04\x01\0\x01\0", (0x82,)),
    "topic shorter than said": (b"\x30\x03\0\x09t", (0x81,)),
    "packet type 0": (b"\x00\x00", (0x81, 0x82)),
    "connack from a client": (b"\x20\x03\0\0\0", (0x82,)),
    "suback from a client": (b"\x90\x04\0\x01\0\0", (0x82,)),
    "unsuback from a client": (b"\xb0\x04\0\x01\0\0", (0x82,)),
    "pingresp from a client": (b"\xd0\x00", (0x82,)),
    "response topic with a wildcard [MQTT-3.3.2-14]": (b"\x30\x08\0\x01t\x04\x08\0\x01#", (0x81, 0x82)),
    "subscription identifier 0 (section 3.8.2.1.2)": (b"\x82\x09\0\x01\x02\x0b\0\0\x01t\0", (0x81, 0x82)),
    "integer in more bytes than needed [MQTT-1.5.5-1]": (b"\x82\x0a\0\x01\x03\x0b\x81\0\0\x01t\0", (0x81,)),
    "pingreq with a body": (b"\xc0\x01x", (0x81,)),
}


@pytest.mark.parametrize("name", CASES)
def test_malformed(broker, name):
    raw, codes = CASES[name]
    bystander, c = broker.client(), broker.client()
    c.send(raw)
    c.refused(*codes)
    bystander.ping()


@pytest.mark.parametrize(
    "raw",
    [b"\x36\x05\0\x01t\0\x01", b"\x30\x05\0\x03a/#", b"\x80\x06\0\x01\0\x01t\0", b"\xf0\x00", b"\x82\x02\0\x01",
     b"\x32\x05\0\x01t\0\0", b"\xc1\x00", b"\x40\x01\0"],
)  # fmt: skip
def test_malformed_in_3_1_1(broker, raw):
    """There is no DISCONNECT from a 3.1.1 server: it just closes."""
    c = broker.client(4)
    c.send(raw)
    c.closed()
