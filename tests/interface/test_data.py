"""A data directory through the front door: where it is, what survives, `roost data`, `roost why`."""

import base64
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import start
from interface.export_file import check
from wire import PUBACK, PUBCOMP, PUBREC, PUBREL, Client

ROOST = [sys.executable, "-m", "roostmq"]
FOREVER = 0xFFFFFFFF


def roost(*words, env=None):
    return subprocess.run(
        [*ROOST, *map(str, words)], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}
    )


def answer(*words):
    """The JSON of a command that must succeed."""
    done = roost(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one_line(done, *texts, code=1):
    """The command failed with one line that says all of this."""
    assert done.returncode == code, done
    assert done.stderr.startswith("roost: ") and done.stderr.count("\n") == 1, done.stderr
    for text in texts:
        assert text in done.stderr
    return done.stderr


@pytest.fixture
def run(tmp_path):
    """Start brokers on a directory; each one still running is stopped."""
    made = []

    def make(*args, data=tmp_path / "data", env=None, **more):
        admin = [] if any("admin" in a for a in args) else ["--no-admin"]
        where = [] if data is None else ["--data", str(data)]
        made.append(start(["--port", "0", *admin, *where, *args], env, **more))
        return made[-1]

    yield make
    for broker in made:
        for client in broker.clients:
            client.socket.close()
        if broker.process.poll() is None:
            assert broker.stop() == 0
        assert not [line for line in broker.log if "a lane has failed" in line]


def kill(broker):
    broker.process.send_signal(signal.SIGKILL)
    broker.stop()


def admin(broker):
    host, port = broker.address("http")
    return f"http://{host}:{port}"


def http(url, body=None, **headers):
    """Status and JSON, or text, of an answer; waits until the admin port serves."""
    until = time.monotonic() + 20
    data = None if body is None else json.dumps(body).encode()
    while True:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=20) as found:
                status, text = found.status, found.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
            continue
        return status, json.loads(text) if text[:1] in "{[" else text


def eventually(check, at_most_s=20):
    until = time.monotonic() + at_most_s
    while not check():
        assert time.monotonic() < until
        time.sleep(0.05)


def fill(broker, count=20, name="away"):
    """A session that is away with messages waiting, and a retained message; all acknowledged."""
    c = broker.client(5, name, session_expiry=FOREVER)
    c.subscribe("t/#")
    c.disconnect()
    p = broker.client()
    for n in range(count):
        assert p.deliver(f"t/{n % 3}", f"m{n}", 1 + n % 2).code < 0x80
    assert p.deliver("kept/one", "retained", 1, retain=True).code < 0x80
    p.disconnect()


def drain(broker, count=20, name="away"):
    """Everything of `fill` is there, in order for each topic."""
    c = broker.client(5, name, clean=False, session_expiry=FOREVER)
    assert c.connack.present
    got = [c.message() for _ in range(count)]
    for topic in ("t/0", "t/1", "t/2"):
        want = [f"m{n}".encode() for n in range(count) if f"t/{n % 3}" == topic]
        assert [m.payload for m in got if m.topic == topic] == want
    c.quiet()
    c.disconnect()
    r = broker.client()
    r.subscribe("kept/#")
    assert r.message("kept/one", "retained").retain
    r.disconnect()


# ---- where it is


def test_where_the_data_is(run, tmp_path):
    assert run(data=None, env=None).data == "memory"
    assert run().data == str(tmp_path / "data")
    home = {"XDG_DATA_HOME": str(tmp_path / "home"), "STATE_DIRECTORY": ""}
    assert run(data=None, keep=True, env=home).data == str(tmp_path / "home" / "roostmq")
    assert (tmp_path / "home" / "roostmq" / "roost.json").exists()
    state = {"STATE_DIRECTORY": str(tmp_path / "state")}
    assert run(data=None, keep=True, env=state).data == str(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o77 == 0, "payloads are nobody else's business"
    option = {"ROOST_DURABILITY__DATA_DIR": str(tmp_path / "env"), **state}
    assert run(data=None, keep=True, env=option).data == str(tmp_path / "env")


@pytest.mark.parametrize("persistence", ["true", "false"])
def test_persistence_of_a_mosquitto_conf(run, tmp_path, persistence):
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"persistence {persistence}\npersistence_location {tmp_path}/kept/\nautosave_interval 5\n")
    words = {"data": None, "keep": True}
    broker = run("--config", str(conf), **words)
    assert broker.data == (str(tmp_path / "kept" / "mosquitto.db.d") if persistence == "true" else "memory")
    fill(broker)
    assert broker.stop() == 0
    broker = run("--config", str(conf), **words)
    if persistence == "true":
        drain(broker)
    else:
        assert not broker.client(5, "away", clean=False).connack.present


# ---- what survives


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_acknowledged_is_there_again(run, end):
    broker = run("--lanes", "2")
    fill(broker)
    broker.stop() if end == "stop" else kill(broker)
    again = run("--lanes", "3")
    drain(again)
    eventually(lambda: any('"event": "recovered"' in line for line in again.log))
    line = json.loads(next(line for line in again.log if '"recovered"' in line))
    assert (line["sessions"], line["queued"], line["retained"], line["damaged"]) == (1, 20, 1, 0)


def test_a_library_broker_keeps_its_data(tmp_path):
    from roostmq import Broker

    for number in (1, 2):
        with Broker(data=tmp_path / "d") as broker:
            c = Client((broker.host, broker.port), 5, "lib", clean=False, session_expiry=FOREVER)
            assert c.connack.present == (number == 2)
            c.disconnect()


def test_a_directory_in_use_is_refused_with_the_pid(run):
    broker = run()
    one_line(roost("run", "--port", "0", "--no-admin", "--data", broker.data), str(broker.process.pid), broker.data)
    one_line(roost("data", "verify", broker.data), str(broker.process.pid))


def test_what_is_not_ours_is_refused(run, tmp_path):
    broker = run()
    broker.stop()
    words = ["run", "--port", "0", "--no-admin", "--data", broker.data]
    one_line(roost(*words, env={"ROOST_PARTITIONS": "128"}), "128", "64")
    identity = tmp_path / "data" / "roost.json"
    there = json.loads(identity.read_text())
    identity.write_text(json.dumps({**there, "format": 99}))
    one_line(roost(*words), "99")
    one_line(roost("data", "inspect", broker.data), "99")
    (tmp_path / "file").touch()
    one_line(roost("run", "--port", "0", "--no-admin", "--data", tmp_path / "file"), "file")


# ---- roost data


def test_inspect_and_verify(run):
    broker = run()
    fill(broker)
    broker.stop()
    found = answer("data", "inspect", broker.data)
    assert (found["sessions"], found["subscriptions"], found["queued"], found["retained"]) == (1, 1, 20, 1)
    assert found["partitions"] == 64 and found["damaged"] == [] and found["torn"] is None
    assert sorted(map(int, found["digests"])) == list(range(64))
    assert answer("data", "inspect", broker.data)["digests"] == found["digests"], "looking changes nothing"
    text = roost("data", "inspect", broker.data).stdout
    for words in (broker.data, "20 messages", "segments:", "digests:"):
        assert words in text
    checked = answer("data", "verify", broker.data)
    assert checked["ok"] and checked["checked_records"] > 20
    assert "good" in roost("data", "verify", broker.data).stdout
    again = run()
    again.stop()
    drain(run())


def test_damage_is_named_everywhere(run, tmp_path):
    """A flipped bit in the middle: verify says where and what can be done, the start says it and serves the rest."""
    broker = run()
    fill(broker, 200)
    broker.stop()
    segment = sorted((tmp_path / "data" / "log").glob("*.seg"))[0]
    raw = bytearray(segment.read_bytes())
    at = raw.index(b"m100")
    raw[at] ^= 1
    segment.write_bytes(raw)
    done = roost("data", "verify", broker.data, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["ok"]
    assert found["damaged"][0]["where"] and found["damaged"][0]["what"] and found["choices"]
    text = roost("data", "verify", broker.data).stdout
    assert "damaged" in text and "what can be done:" in text
    again = run("--admin-port", "0")
    eventually(lambda: any('"event": "damaged"' in line and "warning" in line for line in again.log))
    assert "roostmq_damaged_total 1.0" in http(f"{admin(again)}/metrics")[1]
    c = again.client(5, "away", clean=False, session_expiry=FOREVER)
    assert c.connack.present
    got = [c.message().payload.decode() for _ in range(199)]
    assert "m100" not in got and len(set(got)) == 199
    c.quiet()


def test_export_and_import(run, tmp_path):
    broker = run()
    fill(broker)
    broker.stop()
    file, new = tmp_path / "backup.jsonl", tmp_path / "new"
    counts = {"sessions": 1, "subscriptions": 1, "messages": 20, "retained": 1}
    assert answer("data", "export", broker.data, file) == counts
    assert file.stat().st_mode & 0o777 == 0o600
    found = check(file.read_text())
    assert found["session"][0]["client_id"] == "away"
    assert base64.b64decode(found["message"][0]["payload"]) == b"m0"
    one_line(roost("data", "export", broker.data, file), "is there already")
    assert answer("data", "import", new, file) == counts
    assert answer("data", "verify", new)["ok"]
    same = [answer("data", "inspect", place) for place in (broker.data, new)]
    for name in ("sessions", "subscriptions", "queued", "queued_bytes", "retained", "groups"):
        assert same[0][name] == same[1][name]
    one_line(roost("data", "import", new, file), str(new))
    second = tmp_path / "again.jsonl"
    answer("data", "export", new, second)
    assert sorted(second.read_text().splitlines()[1:]) == sorted(file.read_text().splitlines()[1:])
    drain(run(data=new))
    drain(run())


def test_a_wrong_file_leaves_nothing_that_starts(run, tmp_path):
    broker = run()
    fill(broker)
    broker.stop()
    file = tmp_path / "backup.jsonl"
    answer("data", "export", broker.data, file)
    lines = file.read_text().splitlines()
    for number, (wrong, *texts) in enumerate(
        (
            (lines[:-1],),
            *((lines[:at] + lines[at + 1 :],) for at in range(1, len(lines) - 1)),
            ([lines[0].replace('"roostmq_export":1', '"roostmq_export":7'), *lines[1:]], "7"),
            ([*lines[:3], "{", *lines[3:]], "line 4"),
            ([*lines[:1], json.dumps({"kind": "novelty"}), *lines[1:]], "line 2", "novelty"),
            ([],),
        )
    ):
        bad, new = tmp_path / f"bad-{number}", tmp_path / f"new-{number}"
        bad.write_text("".join(f"{line}\n" for line in wrong))
        one_line(roost("data", "import", new, bad), *texts)
        assert not (new / "roost.json").exists()


def test_export_while_it_runs(run, tmp_path):
    broker = run("--admin-port", "0")
    fill(broker)
    base, file, new = admin(broker), tmp_path / "live.jsonl", tmp_path / "new"
    http(f"{base}/healthz")
    told = answer("data", "export", "--live", "--admin", base, file)
    assert (told["sessions"], told["messages"], told["retained"]) == (1, 20, 1)
    one_line(roost("data", "export", "--live", "--admin", base, file), "is there already")
    one_line(roost("data", "export", "--live", "--admin", base, tmp_path, tmp_path / "x"), broker.data, str(tmp_path))
    assert http(f"{base}/api/v1/export", {"file": "relative"})[0] == 400
    assert http(f"{base}/api/v1/export", {"file": str(tmp_path / "y")}, Host="elsewhere.example")[0] == 403
    assert http(f"{base}/api/v1/export", {"file": "/proc/roost"})[0] in (400, 500)
    drain(broker)
    assert answer("data", "import", new, file)["messages"] == 20
    drain(run(data=new))


def test_everything_is_in_an_export(run, tmp_path):
    """QoS 2 half done on both sides, a shared group, a will, expiry, properties: exported, imported, exported alike."""
    broker = run()
    p = broker.client(5, "publisher", session_expiry=FOREVER)
    s = broker.client(5, "subscriber", session_expiry=FOREVER)
    s.subscribe("two/#", ("$share/crew/jobs/#", 1))
    p.deliver("two/1", "first", 2, content_type="text/plain", expiry=600)
    p.deliver("two/2", "second", 2)
    assert s.message("two/1", finish=False).id
    second = s.message("two/2", finish=False)
    s.ack(PUBREC, second.id)
    s.want(PUBREL)
    s.drop()
    number = p.publish("two/3", "third", 2)
    assert p.want(PUBREC).id == number
    p.deliver("jobs/1", "job", 1)
    p.drop()
    w = broker.client(5, "willing", session_expiry=600, will={"topic": "last", "qos": 1, "will_delay": 60})
    w.drop()
    time.sleep(0.5)
    broker.stop()
    files, place = [tmp_path / "one", tmp_path / "two"], tmp_path / "new"
    answer("data", "export", broker.data, files[0])
    answer("data", "import", place, files[0])
    answer("data", "export", place, files[1])
    found = check(files[0].read_text())
    assert {x["client_id"] for x in found["session"]} == {"publisher", "subscriber", "willing"}
    assert [x["packet_identifier"] for x in found["held"]] == [number]
    assert sorted(x["stage"] for x in found["message"] if x["topic"].startswith("two/1")) == ["sent"]
    assert "received" in [x["stage"] for x in found["message"]]
    assert found["group"][0]["name"] == "crew/jobs/#"
    assert [x["will"]["topic"] for x in found["session"] if x["will"]] == ["last"]
    expiring = [x for x in found["message"] if x["topic"] == "two/1"]
    assert 0 < expiring[0]["expiry_left_ms"] <= 600_000 and expiring[0]["properties"]
    assert any(x["taken"] or x["floor"] for x in found["origin"])
    again = check(files[1].read_text())
    for kind in ("subscription", "held", "group", "origin"):
        assert sorted(map(str, again[kind])) == sorted(map(str, found[kind])), kind
    after = run(data=place)
    p = after.client(5, "publisher", clean=False, session_expiry=FOREVER)
    p.send(p.publish_bytes("two/3", "third", 2, dup=True, number=number))
    assert p.want(PUBREC).code < 0x80
    s = after.client(5, "subscriber", clean=False, session_expiry=FOREVER)
    assert s.connack.present
    got, released = [], []
    while (m := s.read(1)) is not None:
        if m.kind == PUBREL:
            released.append(m.id)
            s.ack(PUBCOMP, m.id)
            continue
        got.append((m.topic, m.payload.decode()))
        s.ack(PUBACK if m.qos == 1 else PUBREC, m.id)
    assert sorted(got) == [("jobs/1", "job"), ("two/1", "first"), ("two/3", "third")]
    assert second.id in released


def test_the_example_of_the_document_is_as_it_says():
    page = Path(__file__).parents[2] / "docs" / "formats" / "export.md"
    found = check(page.read_text().split("```json\n")[1].split("```")[0])
    assert base64.b64decode(found["message"][0]["payload"]) == b"21.5"


# ---- roost why


def test_why(run, tmp_path):
    """Queued, dropped with the reason, and remembered across a restart."""
    limits = {"ROOST_LIMITS__QUEUE_MESSAGES_MAX": "5"}
    broker = run("--admin-port", "0", env=limits)
    fill(broker, 9)
    base = admin(broker)
    http(f"{base}/healthz")
    for number in (1, 2):
        found = answer("why", "away", "--admin", base)
        assert (found["found"], found["connected"], found["queued"]) == (True, False, 5)
        assert found["subscriptions"] == ["t/#"]
        assert [d["reason"] for d in found["drops"]] == ["queue_full"] * 4, f"round {number}"
        assert sum(t["queued"] for t in found["topics"]) == 5
        text = roost("why", "away", "--admin", base).stdout
        assert "its queue was full" in text and "is away" in text
        some = roost("why", "away", "--topic", "t/1", "--admin", base).stdout
        assert "`t/1` is matched by `t/#`" in some
        if number == 1:
            broker.stop()
            broker = run("--admin-port", "0", env=limits)
            base = admin(broker)
            http(f"{base}/healthz")
    done = roost("why", "nobody", "--admin", base)
    assert done.returncode == 1 and "`nobody` has no session" in done.stdout
    broker.stop()
    one_line(roost("why", "away", "--admin", base), "no broker answers at", "--admin URL")


# ---- the disk


def test_a_disk_that_takes_nothing(run):
    """Publishers are told, `/readyz` and the metric say why, and service comes back by itself."""
    broker = run("--admin-port", "0")
    fill(broker)
    base = admin(broker)
    eventually(lambda: http(f"{base}/readyz")[0] == 200)
    whole = resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (0, whole[1]))
    p = broker.client()
    p.publish("t/0", "waits", 1)
    eventually(lambda: http(f"{base}/readyz")[0] == 503)
    assert "disk" in http(f"{base}/readyz")[1]["reason"]
    assert "roostmq_disk_ok 0.0" in http(f"{base}/metrics")[1]
    assert http(f"{base}/healthz")[0] == 200
    other = broker.client()
    assert other.deliver("t/1", "refused", 1).code == 0x97
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, whole)
    eventually(lambda: http(f"{base}/readyz")[0] == 200)
    assert "roostmq_disk_ok 1.0" in http(f"{base}/metrics")[1]
    eventually(lambda: other.deliver("t/2", "again", 1).code < 0x80)
