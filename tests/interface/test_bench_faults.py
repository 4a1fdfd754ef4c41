"""`roost bench` sees what a broker does wrong: each fault by its name, and how often, beside a broker that counts its own.

A generator that calls a faulty broker good is worth nothing: here every counter of docs/formats/bench.md is made to move,
and only the right ones do.
"""

import pytest
from bench_run import bench, together
from faulty_broker import FaultyBroker

SMALL = ["--publishers", 4, "--subscribers", 4, "--seconds", 0.15, "--warmup", 0]
PATIENT = ["--patience", 20]
"""Nothing is missing at the end: nothing is waited for."""
QUICK = ["--patience", 2]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_honest_broker_is_called_good(qos, protocol):
    with FaultyBroker() as broker:
        run = bench("pub-sub", *SMALL, *PATIENT, "-p", broker.port, "-q", qos, "-V", protocol).right()
    assert run.steps["traffic"]["count"] > 100
    assert run.report["acks_out_of_order"] == 0
    assert run.report["notes"] == []


@pytest.mark.parametrize("qos", [0, 2])
def test_packets_that_come_in_pieces_are_the_same_packets(qos):
    with FaultyBroker("drip") as broker:
        bench("pub-sub", *SMALL, *PATIENT, "-p", broker.port, "-q", qos).right()


def test_each_fault_is_counted():
    """`lost` beside another counter: whoever should have had the message did not get it as it was sent."""

    def check(fault, qos, protocol, *counters):
        patience = QUICK if "lost" in counters else PATIENT
        with FaultyBroker(fault, every=40) as broker:
            run = bench("pub-sub", *SMALL, *patience, "-p", broker.port, "-q", qos, "-V", protocol).faulty()
        assert broker.did > 0
        assert run.faults == dict.fromkeys(counters, broker.did)

    cases = [
        ("lose", 0, 4, "lost"),
        ("lose", 1, 5, "lost"),
        ("lose", 2, 4, "lost"),
        ("double", 0, 5, "doubled"),
        ("double", 1, 4, "doubled"),
        ("double", 2, 5, "doubled"),
        ("again", 2, 4, "doubled"),
        ("swap", 0, 4, "reordered"),
        ("swap", 1, 5, "reordered"),
        ("misroute", 0, 4, "lost", "misrouted"),
        ("rename", 1, 5, "lost", "misrouted"),
        ("flip", 0, 4, "lost", "damaged"),
        ("cut", 1, 5, "lost", "damaged"),
        ("other-qos", 0, 5, "damaged"),
        ("other-qos", 1, 4, "damaged"),
        ("other-retain", 2, 5, "damaged"),
        ("refuse-message", 1, 5, "lost", "refused"),
        ("refuse-message", 2, 5, "lost", "refused"),
    ]
    together(check, cases)


def test_a_connection_that_ends_is_counted_and_its_reason_told():
    def check(fault, protocol, why):
        with FaultyBroker(fault, every=20) as broker:
            run = bench("pub-sub", *SMALL, *QUICK, "-p", broker.port, "-q", 1, "-V", protocol).faulty()
        assert broker.did == 1
        assert run.faults["closed"] == 1
        [note] = run.report["notes"]
        assert note.startswith("a connection ended: ")
        assert why in note

    cases = [
        ("close-subscriber", 4, ""),
        ("close-publisher", 5, ""),
        ("rubbish", 4, "not a good packet: first byte 0xf0, 13 bytes"),
        ("endless", 5, "a packet length of more than four bytes"),
        ("stranger", 4, "an acknowledgement for 30021, which is not out"),
        ("wrong-ack", 5, "while Puback is due"),
        ("goodbye", 5, "DISCONNECT with code 0x83"),
    ]
    together(check, cases)


@pytest.mark.parametrize(("qos", "protocol"), [(1, 4), (2, 5)])
def test_a_message_that_is_not_acknowledged_is_one_whatever_waits_behind_it(qos, protocol):
    """At QoS 2 the identifier whose PUBREC or PUBCOMP is missing; those sent after it are acknowledged, and not counted."""
    with FaultyBroker("withhold", every=30) as broker:
        run = bench("pub-sub", *SMALL, *QUICK, "-p", broker.port, "-q", qos, "-V", protocol).faulty()
    assert run.faults == {"unacknowledged": broker.did}


def test_acknowledgements_that_overtake_are_told_and_no_fault():
    """[MQTT-4.6.0-2] binds clients; a server that acknowledges crosswise is noted."""
    with FaultyBroker("disorder", every=30) as broker:
        run = bench("pub-sub", *SMALL, *PATIENT, "-p", broker.port, "-q", 1).right()
    assert run.report["acks_out_of_order"] == broker.did > 0


def test_a_refused_subscription_is_counted_once():
    with FaultyBroker("refuse-filter", every=4) as broker:
        run = bench("pub-sub", *SMALL, *QUICK, "-p", broker.port).faulty()
    assert run.faults["refused"] == broker.did == 1
    assert set(run.faults) == {"refused", "lost"}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("second-connack", "of 127.0.0.1: a second CONNACK"),
        ("short-suback", "a client was closed while it subscribed: a SUBACK with 0 codes for 1 filters"),
        ("second-suback", ", which is not out"),
    ],
)
def test_answers_that_nobody_asked_for_are_seen(fault, text):
    with FaultyBroker(fault, every=1) as broker:
        error = bench("pub-sub", *SMALL, *PATIENT, "-p", broker.port, "--concurrency", 1).impossible()
    assert text in error


@pytest.mark.parametrize(
    ("fault", "protocol", "text"),
    [
        ("refuse-client", 4, "connection 3 of 127.0.0.1: CONNACK with code 0x05"),
        ("refuse-client", 5, "connection 3 of 127.0.0.1: CONNACK with code 0x87"),
        ("close-client", 4, "the server closed the connection"),
        ("rubbish-client", 5, "not a good packet: first byte 0x20, 0 bytes"),
        ("silent", 4, "0 of 1 connections are there, the next does not come"),
        ("no-suback", 5, "3 subscriptions are answered, the next is not"),
    ],
)
def test_a_load_that_cannot_begin_says_why_in_one_line(fault, protocol, text):
    with FaultyBroker(fault, every=3) as broker:
        error = bench("pub-sub", *SMALL, *QUICK, "-p", broker.port, "-V", protocol, "--concurrency", 1).impossible()
    assert text in error
