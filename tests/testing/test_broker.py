"""The library and the pytest plugin: documented examples, faults, and what they cost."""

import subprocess
import sys
import time

import pytest
from wire import Client

import roostmq
from roostmq.errors import ClosedError, ConfigError, EngineError, TimedOut

pytest_plugins = ["pytester"]


def client(broker, **more):
    return Client((broker.host, broker.port), **more)


def test_sync_and_async():
    import asyncio

    with roostmq.Broker() as broker, client(broker) as c:
        c.ping()
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"

    async def use():
        async with roostmq.Broker() as broker:
            await asyncio.to_thread(lambda: client(broker).__exit__())

    asyncio.run(use())


def test_several_in_one_process():
    with roostmq.Broker() as one, roostmq.Broker() as two:
        assert one.port != two.port
        with client(one) as a, client(two) as b:
            a.subscribe("t")
            b.deliver("t", "other", 1)
            a.quiet()


def test_errors():
    with pytest.raises(ConfigError, match="receive_maximum"):
        roostmq.Broker(limits={"receive_maximun": 1})
    broker = roostmq.Broker()
    with pytest.raises(ClosedError):
        _ = broker.engine
    with broker, pytest.raises(EngineError, match="in use"):
        roostmq.Broker(port=broker.port).start()


def test_published_and_wait_for(mqtt_broker):
    with client(mqtt_broker) as c:
        for i in range(20):
            c.deliver(f"a/{i}", f"{i}", 1)
        assert [m.text for m in mqtt_broker.published("a/+")] == [f"{i}" for i in range(20)]
        c.publish("b", b"later", 2)
        assert mqtt_broker.wait_for("b").payload == b"later"
        with pytest.raises(TimedOut, match="`nothing`"):
            mqtt_broker.wait_for("nothing", timeout=0.1)


def test_drop_refuse_delay(mqtt_broker):
    with client(mqtt_broker, client_id="dev", will={"topic": "lost"}) as c:
        mqtt_broker.drop("dev")
        c.closed()
    mqtt_broker.wait_for("lost")
    mqtt_broker.refuse("connect", "dev", reason=0x97, times=1)
    client(mqtt_broker, client_id="dev", expect=0x97).socket.close()
    mqtt_broker.refuse("publish", "x/#", reason=0x99)
    mqtt_broker.refuse("subscribe", "y", reason=0x83)
    with client(mqtt_broker, client_id="dev") as c:
        assert c.deliver("x/1", "", 1).code == 0x99
        assert c.subscribe("y", "z").codes == [0x83, 2]
        mqtt_broker.clear()
        mqtt_broker.stats()
        assert c.deliver("x/1", "", 1).code < 0x80
        mqtt_broker.delay("dev", 1)
        mqtt_broker.stats()
        c.send(b"\xc0\0")
        c.quiet(0.5)
        assert c.read(5) is not None
        mqtt_broker.disconnect("dev", 0x98)
        c.refused(0x98)


def alone(broker):
    """Wait until the broker has seen every client but the observer go."""
    until = time.monotonic() + 10
    while broker.stats()["gauges"]["connections"] > 1:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_advance(mqtt_broker):
    """Expiry, wills and keep alive without waiting."""
    with client(mqtt_broker, client_id="a", session_expiry=3600) as c:
        c.subscribe("t")
        c.drop()
    will = {"topic": "will", "will_delay": 600}
    client(mqtt_broker, client_id="b", session_expiry=3600, will=will).drop()
    alone(mqtt_broker)
    with client(mqtt_broker, keep_alive=60, client_id="k") as silent:
        with client(mqtt_broker) as p:
            p.deliver("t", "old", 1, expiry=100)
        mqtt_broker.advance(700)
        mqtt_broker.wait_for("will")
        silent.refused(0x8D)
    with client(mqtt_broker, client_id="a", clean=False, session_expiry=3600) as c:
        assert c.connack.present
        c.quiet()
    assert [d["reason"] for d in mqtt_broker.drops("a")] == ["expired"]
    alone(mqtt_broker)
    mqtt_broker.advance(7200)
    with client(mqtt_broker, client_id="a", clean=False) as c:
        assert not c.connack.present


def test_nothing_heavy_is_imported():
    code = (
        "import sys, roostmq; b = roostmq.Broker().start(); b.stop()\n"
        "heavy = {'fastapi', 'uvicorn', 'prometheus_client', 'paho', 'structlog', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_fixture_in_a_users_project(pytester):
    """As a user installs it: through the entry point, each test with a broker of its own."""
    pytester.makepyfile(
        """
        import socket

        def test_one(mqtt_broker):
            socket.create_connection((mqtt_broker.host, mqtt_broker.port)).close()
            assert mqtt_broker.published() == []

        def test_two(mqtt_broker):
            assert mqtt_broker.stats()["gauges"]["connections"] == 1
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_memory_does_not_grow():
    with roostmq.Broker() as broker:
        with client(broker) as c:
            for _ in range(200):
                with client(broker) as other:
                    other.ping()
            c.ping()
        assert broker.stats()["gauges"]["sessions"] <= 1
