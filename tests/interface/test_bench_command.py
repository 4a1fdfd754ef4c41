"""`roost bench` through the front door, on this broker: each work, each option, and how it ends when it cannot go on.

The other half, what it says of a broker that is wrong, is in test_bench_faults.py.
"""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
import trustme
from bench_run import ROOST, TIMEOUT_S, Run, bench, together
from conftest import start
from faulty_broker import FaultyBroker

from roostmq.engine import Load, hash_password
from roostmq.errors import EngineError

QUICK = ["--seconds", 0.2, "--warmup", 0, "--patience", 20]
LISTENERS = """
[limits]
packet_bytes_max = 20000000
receive_maximum = 5
[listeners.plain]
port = 0
[listeners.secure]
port = 0
[listeners.secure.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
[listeners.mutual]
port = 0
[listeners.mutual.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
ca_file = "{d}/ca.pem"
client_certificates = "required"
[listeners.ws]
port = 0
websocket = true
websocket_path = "/mqtt"
[listeners.wss]
port = 0
websocket = true
[listeners.wss.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
[listeners.guarded]
port = 0
access = "guarded"
[listeners.six]
host = "::1"
port = 0
websocket = true
[access.default]
allow_anonymous = true
[access.guarded]
allow_anonymous = false
password_file = "{d}/passwords"
"""


@pytest.fixture(scope="module")
def port():
    running = start(["--port", "0", "--no-admin"])
    yield running.port
    assert running.stop() == 0


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """A broker with every kind of listener, and the folder of its certificates."""
    d = tmp_path_factory.mktemp("everywhere")
    ca = trustme.CA()
    for name, issued in (("", ca.issue_cert("localhost", "::1")), ("own-", ca.issue_cert(common_name="car-7"))):
        issued.private_key_pem.write_to_path(d / f"{name}key.pem")
        (d / f"{name}cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    ca.cert_pem.write_to_path(d / "ca.pem")
    (d / "passwords").write_text(f"ann:{hash_password('sesame')}\n")
    (d / "roost.toml").write_text(LISTENERS.format(d=d))
    running = start(["--config", str(d / "roost.toml"), "--no-admin"])
    running.folder = d
    yield running
    assert running.stop() == 0


# the traffic


def test_pairs(port):
    def check(qos, protocol):
        run = bench("pub-sub", "-p", port, "-q", qos, "-V", protocol, *QUICK).right()
        step = run.steps["traffic"]
        assert step["unit"] == "delivered"
        assert step["count"] > 100
        assert step["per_second"] == pytest.approx(step["count"] / step["seconds"])
        assert 0 < step["latency_us"]["p50"] <= step["latency_us"]["p99"] <= step["latency_us"]["max"]
        assert "broker" not in step

    together(check, [(qos, protocol) for qos in (0, 1, 2) for protocol in (4, 5)])


def test_shapes(port):
    """Whoever should get a message does: what is delivered is a multiple of what is sent."""

    def check(publishers, subscribers, each, *words):
        shape = ["--publishers", publishers, "--subscribers", subscribers]
        step = bench("pub-sub", "-p", port, *shape, *words, *QUICK).right().steps["traffic"]
        assert step["unit"] == ("delivered" if subscribers else "published")
        if publishers and subscribers:
            assert step["count"] > 20 * each
            assert step["count"] / step["sent"] == pytest.approx(each, rel=0.5)
        else:
            assert (step["count"] > 20) == (publishers > 0)

    cases = [
        (20, 1, 1),
        (1, 20, 20),
        (3, 4, 4, "--every"),
        (3, 4, 4, "--every", "--topics", 1),
        (5, 4, 1, "--shared", "g", "-V", 5),
        (5, 4, 1, "--shared", "g", "-q", 1, "--topics", 1),
        (12, 5, 1, "-q", 1),
        (12, 9, 3, "--topics", 3, "-q", 2),
        (4, 4, 1, "--topics", 20),
        (1, 0, 0, "-q", 1),
        (2, 0, 0),
        (0, 2, 0),
        (7, 5, 1, "--threads", 2, "-q", 1),
        (4, 4, 4, "--threads", 2, "--every"),
        (4, 4, 1, "--threads", 2, "--shared", "g"),
        (1, 1, 1, "--threads", 4),
        (10, 10, 1, "--window", 1, "-q", 2),
        (1, 1, 1, "--window", 9000, "-q", 1),
    ]
    together(check, cases)


def test_sizes(everywhere):
    def check(size):
        words = ["--publishers", 2, "--subscribers", 2, "--window", 4, "--size", size, "-q", 1]
        step = bench("pub-sub", "-p", everywhere.port, *words, *QUICK).right().steps["traffic"]
        assert step["count"] > 4

    together(check, [(24,), (25,), (1000,), (65_560,), (1 << 20,)])


def test_more_than_the_broker_takes(port):
    """[MQTT-3.2.2-15]: in 5.0 it says how much at the beginning; in 3.1.1 it can only close."""
    words = ["-p", port, "--size", 1_048_576, "--publishers", 1, "--subscribers", 1]
    for work in ("pub-sub", "retained", "offline"):
        more = words if work == "pub-sub" else [*words[:4], "-n", 5]
        error = bench(work, *more, "-V", 5, "--patience", 2).impossible()
        assert error == "roost: --size: the broker takes packets of at most 1048576 bytes\n"
    run = bench("pub-sub", *words, "--seconds", 0.2, "--patience", 1).faulty()
    assert run.faults["closed"] == 1


def test_a_schedule_is_kept(port):
    words = ["--publishers", 4, "--subscribers", 4, "--rate", 400, "-q", 1, "--seconds", 0.5, "--warmup", 0.1]
    step = bench("pub-sub", "-p", port, *words).right().steps["traffic"]
    assert step["sent"] == pytest.approx(200, abs=40)
    assert step["late_us"]["p50"] <= step["late_us"]["max"]
    slow = bench("pub-sub", "-p", port, "--rate", 1, "--publishers", 3, *QUICK).right()
    assert slow.steps["traffic"]["sent"] <= 1


def test_a_receive_maximum_is_kept(everywhere):
    """[MQTT-3.3.4-9]: this broker takes 5 at a time and ends connections that send more."""
    for words in (["pub-sub", "-q", 1, *QUICK], ["pub-sub", "-q", 2, "--rate", 2000, *QUICK]):
        bench(*words, "-p", everywhere.port, "-V", 5).right()
    for words in (["retained", "-q", 1], ["subscriptions", "-q", 1, "--messages", 500], ["offline", "-q", 2]):
        bench(*words, "-p", everywhere.port, "-V", 5, "-n", 100).right()


@pytest.mark.parametrize("work", ["pub-sub", "offline"])
def test_a_receive_maximum_is_used_up(work):
    with FaultyBroker(receive_maximum=3, ack_delay_s=0.005) as broker:
        words = [*QUICK, "--publishers", 1, "--subscribers", 1] if work == "pub-sub" else ["-n", 5, "--publishers", 1]
        bench(work, *words, "-p", broker.port, "-q", 1, "-V", 5).right()
        assert broker.most_under_way == 3


# the way to the broker


def test_transports(everywhere):
    d = everywhere.folder
    tls = ["--tls", "--cafile", d / "ca.pem", "--server-name", "localhost"]

    def check(kind, nth, *words):
        _, port = everywhere.address(kind, nth)
        for more in ([], ["--size", 300_000, "--window", 2, "-q", 1, "--publishers", 2, "--subscribers", 2]):
            bench("pub-sub", "-p", port, *words, *more, *QUICK).right()

    cases = [
        ("mqtts", 0, *tls),
        ("mqtts", 1, *tls, "--cert", d / "own-cert.pem", "--key", d / "own-key.pem"),
        ("ws", 0, "--websocket"),
        ("ws", 0, "--websocket", "--path", "mqtt"),
        ("wss", 0, "--websocket", *tls),
        ("ws", 1, "--websocket", "--host", "::1"),
        ("mqtt", 1, "--username", "ann", "--password", "sesame"),
    ]
    together(check, cases)


def test_packets_larger_than_a_frame(everywhere):
    """[MQTT-6.0.0-2]: a packet may be spread over WebSocket frames, and frames have no bound of their own."""
    words = ["--websocket", "--size", 17_000_000, "--window", 1, "--publishers", 1, "--subscribers", 1, "-q", 1]
    bench("pub-sub", "-p", everywhere.address("ws")[1], *words, "--seconds", 0.5, "--warmup", 0).right()


def test_the_source_address_is_chosen():
    with FaultyBroker() as broker:
        words = ["--source", "127.0.0.2", "--source", "127.0.0.3", "--publishers", 2, "--subscribers", 2]
        bench("pub-sub", "-p", broker.port, *words, *QUICK).right()
        assert sorted(broker.peers) == ["127.0.0.2"] * 2 + ["127.0.0.3"] * 2


def test_refusals_of_every_layer_are_told_in_one_line(everywhere):
    d, (_, secure), (_, mutual) = everywhere.folder, everywhere.address("mqtts"), everywhere.address("mqtts", 1)
    tls = ["--tls", "--cafile", f"{d}/ca.pem", "--server-name", "localhost"]
    for port, words, text in (
        (secure, [*tls[:-1], "elsewhere"], "not valid for name"),
        (secure, ["--tls", "--server-name", "localhost"], "UnknownIssuer"),
        (mutual, tls, "ertificate"),
        (secure, [], "connection 1 of 127.0.0.1"),
        (everywhere.port, ["--websocket"], "connection 1 of 127.0.0.1"),
        (everywhere.address("ws")[1], ["--websocket", "--path", "/elsewhere"], "HTTP"),
        (everywhere.address("mqtt", 1)[1], ["-u", "ann", "-P", "wrong"], "CONNACK with code 0x0"),
    ):
        error = bench("pub-sub", "-p", port, *words, "--patience", 15, "--concurrency", 1).impossible()
        assert text in error, error


# what cannot be


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pub-sub", "-p", 70000], "--port: 70000 is not between 1 and 65535"),
        (["pub-sub", "--size", 23], "--size: 23 is not between 24 and"),
        (["pub-sub", "--size", 268_435_456], "--size: 268435456 is not between 24 and"),
        (["pub-sub", "--size", -5], "--size: -5 is not a number from 0"),
        (["pub-sub", "--publishers", -1], "--publishers: -1 is not a number from 0"),
        (["pub-sub", "--window", 0], "--window: 0 is not between 1 and 65535"),
        (["pub-sub", "--threads", 0], "--threads: 0 is not between 1 and 256"),
        (["pub-sub", "--seconds", "nan"], "--seconds: nan is not"),
        (["pub-sub", "--seconds", "-1"], "--seconds: -1.0 is not a number from 0"),
        (["pub-sub", "--rate", "inf"], "--rate: inf is not"),
        (["pub-sub", "--rate", 1e12], "--rate: 1000000000000.0 is not a number from 0"),
        (["pub-sub", "--rate", 1e8], "--rate: 100000000 is not between 0 and 10000000 per second"),
        (["pub-sub", "--shared", "a/b"], "--shared: `a/b` is not the name of a group"),
        (["pub-sub", "--password", "x"], "--password: MQTT 3.1.1 has none without a --username"),
        (["pub-sub", "--cert", "x"], "--cert and --key go together"),
        (["pub-sub", "--tls", "--cafile", "/nowhere.pem"], "/nowhere.pem: No such file"),
        (["pub-sub", "--source", "here"], "--source: `here` is not an address"),
        (["pub-sub", "--source", "192.0.2.7"], "cannot be made: "),
        (["pub-sub", "--pid", 0], "--pid 0: no such process"),
        (["pub-sub", "--pid", -4], "--pid: -4 is not"),
        (["pub-sub", "--pid", 4_194_305], "--pid 4194305: no such process"),
        (["pub-sub", "--host", "nowhere.invalid"], "nowhere.invalid: "),
        (["pub-sub", "-p", 1], "connection 1 of 127.0.0.1: Connection refused"),
        (["connect", "-n", 0], "--count: 0 is not between 1 and"),
        (["subscriptions", "--filter", "a/b"], "--filter: `a/b` has no %i"),
        (["subscriptions", "--published", 0], "--published: 0 is not between 1 and"),
        (["subscriptions", "--step", -1], "--step: -1 is not"),
        (["offline", "--part", "load"], "--part: the parts need a --state FILE"),
        (["offline", "--part", "load", "--state", "/nowhere"], "/nowhere: No such file"),
        (["offline", "--state", "/nowhere/at/all"], "/nowhere/at/all: No such file"),
        (["offline", "--part", "drain", "--state", "/dev/null"], "/dev/null: not the state of a load"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_in_one_line(port, words, text):
    where = [] if "-p" in words else ["-p", port]
    error = bench(*words, *where, "--patience", 2).impossible()
    assert text in error, error


@pytest.mark.parametrize(
    "words", [[], ["fly"], ["pub-sub", "--qos", "3"], ["pub-sub", "--size", "many"], ["soak", "-V", "3"]]
)
def test_a_command_line_that_cannot_be_read(words):
    done = subprocess.run([*ROOST, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "roost bench" in done.stderr
    assert "Traceback" not in done.stderr


# what people see


def test_the_costs_of_the_broker_are_told():
    running = start(["--port", "0", "--no-admin"])
    pid = ["--pid", running.process.pid]
    step = bench("pub-sub", "-p", running.port, *pid, *QUICK).right().steps["traffic"]
    assert step["broker"]["rss_bytes"] > 1_000_000
    assert step["broker"]["us_each"] > 0

    def check(work, *words):
        run = bench(work, "-p", running.port, *pid, "-n", 50, *words).right()
        assert any("bytes_each" in step for step in run.report["steps"])

    together(check, [("connect", "--seconds", 0), ("retained",), ("subscriptions",)])
    assert running.stop() == 0


def test_the_report_for_people(port):
    run = bench("pub-sub", "-p", port, "--rate", 500, "--pid", os.getpid(), *QUICK, json_too=False)
    assert (run.code, run.error) == (0, "")
    for text in ("traffic: ", "latency: p50", "late: p50", "MB resident", "every message as it should be"):
        assert text in run.out
    with FaultyBroker("double", every=50) as broker:
        run = bench("pub-sub", "-p", broker.port, *QUICK, json_too=False)
    assert run.code == 3
    assert f"FAULTS: {broker.did:,} doubled\n" in run.out


def on_a_terminal(*words):
    """What the load writes to a terminal, and its report."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*ROOST, *map(str, words), "--json"], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    seen, until = b"", time.monotonic() + TIMEOUT_S
    with contextlib.suppress(OSError):
        while time.monotonic() < until and (select.select([ours], [], [], 1)[0] or process.poll() is None):
            if select.select([ours], [], [], 0)[0]:
                seen += os.read(ours, 65536)
    os.close(ours)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return seen.decode(), json.loads(out)


def test_progress_is_for_terminals():
    with FaultyBroker("double", every=50) as broker:
        words = ["pub-sub", "-p", broker.port, "--seconds", 1]
        seen, report = on_a_terminal(*words)
        assert report["faults"]["doubled"] == broker.did
        lines = seen.split("\r\x1b[K")
        assert any(" delivered" in line and "traffic" in line and " faults" in line for line in lines), lines
        assert lines[-1] == ""
        seen, _ = on_a_terminal(*words, "--quiet")
        assert seen == ""


def test_the_format_of_plan_and_report_is_written_down(port):
    """docs/formats/bench.md has every field that `--json` prints, and every option."""
    text = (Path(__file__).parents[2] / "docs" / "formats" / "bench.md").read_text()
    words = ["pub-sub", "-p", port, "--rate", 500, "--pid", os.getpid(), *QUICK]
    report = bench(*words).right().report
    step = report["steps"][0]
    places = [report, report["faults"], step, step["latency_us"], step["broker"]]
    missing = {name for place in places for name in place if f"`{name}`" not in text}
    for work in ("pub-sub", "connect", "retained", "subscriptions", "offline", "soak"):
        shown = subprocess.run([*ROOST, work, "--help"], capture_output=True, text=True, timeout=TIMEOUT_S).stdout
        options = set(re.findall(r"--([a-z-]+)", shown)) - {"help", "json", "quiet"}
        missing |= {o for o in options if f"`--{o}`" not in text and f"`{o.replace('-', '_')}`" not in text}
    assert missing == set()


# without the command


def test_a_report_that_is_there_can_be_taken_again(port):
    """A Ctrl-C while it is handed over loses nothing."""
    load = Load({"work": "connect", "port": port, "count": 2, "seconds": 0})
    assert load.report(0) is None
    first = load.report(20)
    assert first is not None and first["ok"]
    assert load.report(0) == first
    failed = Load({"work": "connect", "port": 1})
    for _ in range(2):
        with pytest.raises(EngineError, match="Connection refused"):
            failed.report(20)


def test_a_plan_that_is_not_one():
    for plan, text in (({"speed": 1}, "unknown field `speed`"), ({"work": "fly"}, "unknown variant `fly`")):
        with pytest.raises(EngineError, match=text):
            Load(plan)


def test_a_load_that_nobody_wants_any_more_ends():
    with FaultyBroker() as broker:
        load = Load({"port": broker.port, "seconds": 1000})
        while not load.progress()["delivered"]:
            time.sleep(0.02)
        del load
        assert broker.routed > 0


# the end before the end


def interrupted(when, *words, signals=1):
    """A load that gets a Ctrl-C once `when` says so."""
    process = subprocess.Popen(
        [*ROOST, *map(str, words), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 20
    while not when():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    for _ in range(signals):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in error
    return Run(process.returncode, out, error)


def test_a_ctrl_c_ends_the_sending_and_reports():
    """What is under way then still comes: nothing is called lost because a person did not wait."""

    def check(*words):
        with FaultyBroker(ack_delay_s=0.01) as broker:
            run = interrupted(lambda: broker.routed > 20, *words, "-p", broker.port).right()
            assert run.report["steps"][0]["count"] > 0
            assert not broker.retained

    cases = [
        ("pub-sub", "-q", 2, "--seconds", 100, "--warmup", 0),
        ("pub-sub", "-q", 0, "--seconds", 100, "--warmup", 0, "--threads", 2),
        ("pub-sub", "-q", 1, "--seconds", 100, "--warmup", 0, "--rate", 5000),
        ("soak", "-q", 1, "--seconds", 1000),
        ("subscriptions", "-q", 1, "-n", 20, "--messages", 100_000_000),
        ("offline", "-n", 20, "--messages", 2000, "--window", 5),
        ("retained", "-q", 1, "-n", 100_000, "--window", 5),
    ]
    together(check, cases)


def test_a_second_ctrl_c_ends_at_once():
    with FaultyBroker("lose", every=5) as broker:
        words = ["pub-sub", "--seconds", 1000, "--warmup", 0, "--patience", 1000]
        run = interrupted(lambda: broker.routed > 20, *words, "-p", broker.port, signals=2)
    assert run.code == 0
    assert run.report["notes"] == ["ended at once: what was under way is not counted"]


def test_a_ctrl_c_before_anything_is_there():
    with FaultyBroker("silent") as broker:
        run = interrupted(lambda: broker.peers, "pub-sub", "-p", broker.port, "--patience", 1000)
    assert run.impossible() == "roost: stopped while clients connected: 0 were there\n"
