"""Flow control and sizes (sections 4.9, 3.1.2.11): Receive Maximum and Maximum Packet Size, both ways."""

from wire import PUBACK, PUBCOMP, PUBREC, PUBREL, unique


def test_the_clients_receive_maximum(broker):
    """[MQTT-3.3.4-9]: three sent, the rest waits; one done lets one go."""
    topic, p = unique(), broker.client()
    c = broker.client(receive_maximum=3)
    c.subscribe(topic)
    for i in range(6):
        p.deliver(topic, f"{i}", 1)
    held = [c.message(topic, f"{i}", finish=False) for i in range(3)]
    c.quiet()
    for i, m in enumerate(held):
        c.ack(PUBACK, m.id)
        c.message(topic, f"{i + 3}", finish=False)
    c.quiet()


def test_qos2_keeps_its_place_until_pubcomp(broker):
    """[MQTT-3.3.4-9, MQTT-4.9.0-2]"""
    topic, p = unique(), broker.client()
    c = broker.client(receive_maximum=1)
    c.subscribe(topic)
    p.deliver(topic, "0", 2)
    p.deliver(topic, "1", 2)
    m = c.message(topic, "0", finish=False)
    c.ack(PUBREC, m.id)
    c.want(PUBREL)
    c.quiet()
    c.ack(PUBCOMP, m.id)
    c.message(topic, "1")


def test_qos0_is_not_held_back(broker):
    topic, p = unique(), broker.client()
    c = broker.client(receive_maximum=1)
    c.subscribe(topic)
    p.deliver(topic, "1", 1)
    c.message(topic, "1", finish=False)
    p.publish(topic, "0", 0)
    c.message(topic, "0")


def test_the_brokers_receive_maximum(broker):
    """Section 4.9: one more than announced is refused with 0x93."""
    c, topic = broker.client(), unique()
    n = c.connack.properties["receive_maximum"]
    assert n < 65_535
    c.send(b"".join(c.publish_bytes(topic, "", 2, number=i + 1) for i in range(n)))
    for _ in range(n):
        assert c.want(PUBREC).code < 0x80
    c.publish(topic, "", 2, number=n + 1)
    c.refused(0x93)


def test_receive_maximum_is_never_leaked(make_broker):
    """However messages end, their places are given back."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\nreceive_maximum = 2\n")
    c, topic = broker.client(), unique()
    for _ in range(5):
        c.deliver(topic, "", 1)
        c.deliver(topic, "", 2)
        c.publish(topic, "", 2, number=5)
        c.want(PUBREC)
        c.publish(topic, "", 2, number=5, dup=True)
        c.want(PUBREC)
        c.ack(PUBREL, 5)
        c.want(PUBCOMP)


def test_too_large_for_the_client(broker):
    """[MQTT-3.1.2-24, MQTT-3.1.2-25]: dropped as if sent; the next one still comes, the connection stays."""
    topic, p = unique(), broker.client()
    c = broker.client(maximum_packet=100, receive_maximum=1)
    c.subscribe(topic)
    for qos in (0, 1, 2):
        p.deliver(topic, b"x" * 200, qos)
        p.deliver(topic, "small", qos)
        c.message(topic, "small")
    c.ping()


def test_too_large_for_the_broker(make_broker):
    """[MQTT-3.2.2-15]: announced, and refused with 0x95."""
    broker = make_broker("[listeners.tcp]\nport = 0\n[limits]\npacket_bytes_max = 1000\n")
    c = broker.client()
    assert c.connack.properties["maximum_packet"] == 1000
    c.publish("t", b"x" * 2000)
    c.refused(0x95)


def test_large_messages_pass(broker):
    topic, p = unique(), broker.client()
    watchers = [broker.client(v) for v in (4, 5, 5)]
    for w in watchers:
        w.subscribe(topic)
    body = bytes(range(256)) * 3000
    for qos in (0, 1, 2):
        p.deliver(topic, body, qos)
        for w in watchers:
            w.message(topic, body)


def test_order_of_acknowledgements(broker):
    """[MQTT-4.6.0-2]: in the order of the publishes."""
    c, w, topic = broker.client(), broker.client(), unique()
    w.subscribe(f"{topic}/#")
    c.send(b"".join(c.publish_bytes(f"{topic}/{i % 7}", "", 1, number=i + 1) for i in range(200)))
    assert [c.want(PUBACK).id for _ in range(200)] == list(range(1, 201))
