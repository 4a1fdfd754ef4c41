"""The works of `roost bench` beside pub-sub: connections, retained messages, subscriptions, sessions that are away, a soak."""

import json
import time

import pytest
from bench_run import bench, together
from conftest import start
from faulty_broker import FaultyBroker

PATIENT = ["--patience", 20]
QUICK = ["--patience", 2]


@pytest.fixture(scope="module")
def port():
    running = start(["--port", "0", "--no-admin"])
    yield running.port
    assert running.stop() == 0


# connect


def test_connections(port):
    def check(protocol):
        words = ["-n", 50, "--seconds", 0.1, "--subscriptions", 3, "--concurrency", 7]
        run = bench("connect", "-p", port, "-V", protocol, *words).right()
        steps = run.report["steps"]
        names = ["connect up to 10", "subscribe", "connect up to 50", "subscribe", "idle"]
        assert [(s["name"], s["count"]) for s in steps] == list(zip(names, [10, 30, 40, 120, 50], strict=True))
        assert steps[2]["latency_us"]["p99"] > 0

    together(check, [(4,), (5,)])


def test_connections_at_a_rate(port):
    """Slower than the patience: nobody is waited for meanwhile."""
    begun = time.monotonic()
    bench("connect", "-p", port, "-n", 3, "--rate", 0.7, "--patience", 1.2, "--seconds", 0).right()
    assert time.monotonic() - begun > 1


def test_one_connection_is_enough(port):
    run = bench("connect", "-p", port, "-n", 1, "--persistent", "--seconds", 0).right()
    assert run.steps["connect up to 1"]["count"] == 1


def test_the_keep_alive_is_the_one_of_the_broker():
    """[MQTT-3.1.2-21]: it may ask for another than the client."""
    with FaultyBroker(keep_alive_s=1) as broker:
        bench("connect", "-p", broker.port, "-V", 5, "-n", 4, "--seconds", 1).right()
        assert broker.pings >= 4


def test_idle_connections_that_end_are_counted():
    with FaultyBroker() as broker:
        broker.later_threadsafe(0.9, broker.drop_all)
        run = bench("connect", "-p", broker.port, "-n", 1, "--seconds", 1.5).faulty()
    assert run.faults == {"closed": 1}
    assert run.report["notes"] == ["a connection ended: the server closed the connection"]


# retained


def test_retained_messages(port):
    def check(qos, protocol):
        run = bench("retained", "-p", port, "-q", qos, "-V", protocol, "-n", 150, "--size", 100).right()
        assert {name: step["count"] for name, step in run.steps.items()} == {"store": 150, "scan": 150, "clear": 150}

    together(check, [(0, 4), (1, 5), (2, 4)])


def test_faults_of_retained_messages():
    def check(fault, *counters):
        with FaultyBroker(fault, every=30) as broker:
            patience = QUICK if "lost" in counters else PATIENT
            run = bench("retained", "-p", broker.port, "-q", 1, "-n", 100, *patience).faulty()
        assert broker.did == 3
        assert broker.retained == {}
        assert run.faults == dict.fromkeys(counters, 3)

    cases = [
        ("lose", "lost"),
        ("double", "doubled"),
        ("flip", "lost", "damaged"),
        ("rename", "lost", "misrouted"),
        ("other-retain", "damaged"),
        ("other-qos", "damaged"),
    ]
    together(check, cases)


def test_a_scan_that_is_refused():
    with FaultyBroker("refuse-filter", every=1) as broker:
        run = bench("retained", "-p", broker.port, "-n", 20, *QUICK).faulty()
    assert run.faults == {"refused": 1, "lost": 20}


def test_retained_messages_are_taken_away_again():
    with FaultyBroker() as broker:
        bench("retained", "-p", broker.port, "-n", 20).right()
        assert broker.retained == {}


# subscriptions


def test_subscriptions(port):
    def check(qos, protocol):
        words = ["-n", 300, "--step", 50, "--step", 100, "--step", 50, "--step", 0, "--step", 999, "--messages", 400]
        own = ["--filter", f"{qos}/+/x%i/#"]
        run = bench("subscriptions", "-p", port, "-q", qos, "-V", protocol, *own, *words).right()
        assert {name: step["count"] for name, step in run.steps.items()} == expected

    expected = {
        "subscribe up to 50": 50,
        "publish at 50": 400,
        "subscribe up to 100": 50,
        "publish at 100": 400,
        "subscribe up to 300": 200,
        "publish at 300": 400,
    }
    together(check, [(0, 5), (1, 4), (2, 5)])


def test_filters_of_many_shapes(port):
    def check(text):
        words = ["--filter", text, "-n", 20, "--messages", 45, "--published", 7]
        run = bench("subscriptions", "-p", port, "-q", 1, *words).right()
        assert run.steps["publish at 20"]["count"] == 45

    together(check, [("x/%i",), ("+/a%i/+",), ("b%i/#",), ("deep/a/b/c/%i/+/d/#",)])


def test_faults_while_subscriptions_grow():
    def check(fault, *counters):
        with FaultyBroker(fault, every=30) as broker:
            words = ["-n", 10, "--messages", 100, "--window", 50, *(QUICK if "lost" in counters else PATIENT)]
            run = bench("subscriptions", "-p", broker.port, "-q", 1, "-V", 5, *words).faulty()
        assert broker.did == 3
        assert run.faults == dict.fromkeys(counters, 3)

    together(check, [("lose", "lost"), ("double", "doubled"), ("refuse-message", "lost", "refused")])


def test_refused_filters_are_counted():
    with FaultyBroker("refuse-filter", every=5) as broker:
        run = bench("subscriptions", "-p", broker.port, "-n", 100, "--published", 4, *PATIENT).faulty()
    assert run.faults == {"refused": 20}


# offline


@pytest.mark.parametrize(("qos", "protocol"), [(1, 4), (1, 5), (2, 4), (2, 5)])
def test_messages_for_sessions_that_are_away(port, qos, protocol):
    run = bench("offline", "-p", port, "-q", qos, "-V", protocol, "-n", 30, "--messages", 200).right()
    assert {name: step["count"] for name, step in run.steps.items()} == {"prepare": 30, "load": 200, "drain": 200}


@pytest.mark.parametrize(("qos", "protocol"), [(1, 5), (2, 4)])
def test_parts_around_a_broker_that_is_killed(tmp_path, qos, protocol):
    """What was acknowledged comes after a kill -9; the parts know each other by the file alone."""
    data = ["--data", str(tmp_path / "data"), "--no-admin"]
    words = ["-V", protocol, "--state", tmp_path / "state"]
    running = start(["--port", "0", *data])
    assert (
        "prepare"
        in bench("offline", "--part", "prepare", "-p", running.port, "-n", 40, "-q", qos, *words).right().steps
    )
    load = ["offline", "--part", "load", "--messages", 300, "--publishers", 3]
    for _ in range(2):
        assert bench(*load, "-p", running.port, *words).right().steps["load"]["count"] == 300
    running.process.kill()
    running.stop()
    running = start(["--port", "0", *data])
    drain = ["offline", "--part", "drain", "-p", running.port, *words]
    assert bench(*drain).right().steps["drain"]["count"] == 600
    assert bench(*load, "-p", running.port, *words).right().steps["load"]["count"] == 300
    assert bench(*drain).right().steps["drain"]["count"] == 300
    assert bench(*drain).right().steps["drain"]["count"] == 0
    assert running.stop() == 0


def test_parts_know_how_many_sessions_there_are(tmp_path):
    """More sessions than the default of --count, which is not given to the later parts."""
    with FaultyBroker("lose", every=1200) as broker:
        words = ["offline", "-p", broker.port, "--state", tmp_path / "state"]
        bench(*words, "--part", "prepare", "-n", 1100).right()
        bench(*words, "--part", "load", "--messages", 1199).right()
        assert bench(*words, "--part", "drain").right().steps["drain"]["count"] == 1199
        bench(*words, "--part", "load", "--messages", 1100).right()
        run = bench(*words, "--part", "drain", *QUICK).faulty()
    assert run.faults == {"lost": 1}


def test_parts_with_a_broker_that_forgets(tmp_path):
    state = ["--state", tmp_path / "state"]
    for part, faults in (("prepare", {}), ("load", {}), ("drain", {"lost": 50, "sessions": 10})):
        with FaultyBroker() as broker:
            if part == "load":
                bench("offline", "-p", broker.port, "--part", "prepare", "-n", 10, *state).right()
            run = bench("offline", "-p", broker.port, "--part", part, "-n", 10, "--messages", 50, *QUICK, *state)
            assert run.faults == faults


def test_what_was_not_acknowledged_may_come_or_not(tmp_path):
    state = tmp_path / "state"
    for fault in ("withhold", "lose"):
        with FaultyBroker(fault, every=95) as broker:
            words = ["offline", "-p", broker.port, "--state", state, "--publishers", 1, *QUICK]
            bench(*words, "--part", "prepare", "-n", 10).right()
            run = bench(*words, "--part", "load", "--messages", 100)
            assert run.faults == ({"unacknowledged": 1} if fault == "withhold" else {})
            if fault == "lose":
                told = json.loads(state.read_text())
                told["acked"] = [min(9, n) for n in told["acked"]]
                state.write_text(json.dumps(told))
            run = bench(*words, "--part", "drain").right()
            assert run.report["notes"] == [
                f"{10 if fault == 'lose' else 6} messages were sent and not acknowledged: they may come or not"
            ]


def test_faults_of_sessions_that_are_away():
    def check(fault, *counters):
        every = {"forget-session": 5, "disorder": 7}.get(fault, 30)
        with FaultyBroker(fault, every) as broker:
            patience = QUICK if "lost" in counters else PATIENT
            run = bench("offline", "-p", broker.port, "-q", 2, "-n", 20, "--messages", 100, *patience)
        assert broker.did > 0
        expected = dict.fromkeys(counters, broker.did)
        if fault == "forget-session":
            expected["lost"] = broker.did * 5
        assert run.faults == expected
        # its PUBREC, and its PUBCOMP: the PUBREL follows the PUBREC [MQTT-4.3.3-4]
        assert run.report["acks_out_of_order"] == (broker.did * 2 if fault == "disorder" else 0)

    cases = [
        ("lose", "lost"),
        ("double", "doubled"),
        ("flip", "lost", "damaged"),
        ("again", "doubled"),
        ("forget-session", "lost", "sessions"),
        ("disorder",),
    ]
    together(check, cases)


# soak


def test_a_soak_and_its_faults():
    def check(fault, qos, protocol):
        with FaultyBroker(fault, every=1 if fault == "forget-session" else 50) as broker:
            patience = QUICK if fault in ("lose", "forget-session") else PATIENT
            words = ["--publishers", 4, "--subscribers", 4, "--rate", 400, "--seconds", 1, *patience]
            run = bench("soak", "-p", broker.port, "-q", qos, "-V", protocol, *words)
        assert len(run.report["steps"]) == 10
        assert sum(step["count"] for step in run.report["steps"]) > 50
        assert (broker.did > 0) == (fault != "")
        if fault == "forget-session":
            assert run.faults["sessions"] == broker.did
        elif fault == "double":
            # a second copy that was on its way to a client that just left is never read
            assert set(run.faults) == {"doubled"} and 0 < run.faults["doubled"] <= broker.did
        else:
            assert run.faults == ({"lost": broker.did} if fault else {})

    honest = [("", 1, 4), ("", 1, 5), ("", 2, 4), ("", 2, 5)]
    faulty = [("lose", 1, 5), ("lose", 2, 4), ("double", 1, 4), ("double", 2, 5), ("forget-session", 1, 4)]
    together(check, honest + faulty)


def test_a_soak_of_this_broker(port):
    def check(qos, protocol):
        words = ["--publishers", 5, "--subscribers", 6, "--rate", 2000, "--seconds", 1.5]
        run = bench("soak", "-p", port, "-q", qos, "-V", protocol, *words).right()
        assert sum(step["count"] for step in run.report["steps"]) > 500

    together(check, [(1, 5), (2, 4)])
