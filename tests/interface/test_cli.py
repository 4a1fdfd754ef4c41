"""The command line: what it prints, how it ends, how it complains."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import start

from roostmq import engine

ROOST = [sys.executable, "-m", "roostmq"]


def roost(*words, stdin="", env=None):
    return subprocess.run(
        [*ROOST, *words], capture_output=True, text=True, timeout=60, input=stdin, env={**os.environ, **(env or {})}
    )


def test_help_and_version():
    for words in (
        ["--help"],
        ["run", "--help"],
        ["pub", "--help"],
        ["sub", "--help"],
        ["passwd", "--help"],
        ["config", "--help"],
    ):
        done = roost(*words)
        assert done.returncode == 0
        assert "usage: roost" in done.stdout
    assert roost("version").stdout == f"roost {engine.version()}\n"
    assert roost("--version").stdout == roost("version").stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, ""),
        (["rum"], 2, "did you mean `run`?"),
        (["run", "--data", "/tmp/x", "--memory"], 2, "not allowed with"),
        (["run", "--port", "70000"], 1, "not between 0 and 65535"),
        (["run", "--config", "/nowhere.toml"], 1, "/nowhere.toml: cannot be read"),
        (["run", "--host", "192.0.2.1", "--port", "0"], 1, "allow_anonymous = true"),
        (["pub", "-t", "a/#", "-m", "x"], 1, "is a filter"),
    ],
)
def test_errors_say_what_and_where(words, code, text):
    done = roost(*words)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_run_prints_its_listeners_then_ready_and_ends_with_0(tmp_path):
    pid_file = tmp_path / "pid"
    config = tmp_path / "roost.toml"
    config.write_text(
        f'pid_file = "{pid_file}"\n[listeners.tcp]\nport = 0\n[listeners.ws]\nport = 0\nwebsocket = true\n'
    )
    running = start(["--config", str(config), "--admin-port", "0"])
    assert [kind for kind, _ in running.listening] == ["mqtt", "ws", "http"]
    assert pid_file.read_text().strip() == str(running.process.pid)
    assert running.stop() == 0
    assert not pid_file.exists()


def test_a_port_in_use_is_said():
    running = start(["--port", "0", "--no-admin"])
    done = roost("run", "--port", str(running.port), "--no-admin", "--memory")
    assert running.stop() == 0
    assert done.returncode == 1
    assert f"{running.port} is in use" in done.stderr


def test_health_metrics_and_information():
    running = start(["--port", "0", "--admin-port", "0"])
    host, port = running.address("http")

    def get(path):
        until = time.monotonic() + 15
        while True:
            try:
                with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                    return answer.read().decode()
            except (ConnectionError, urllib.error.URLError):
                assert time.monotonic() < until
                time.sleep(0.02)

    assert json.loads(get("/healthz")) == {"status": "ok"}
    assert json.loads(get("/readyz")) == {"ready": True}
    c = running.client()
    c.subscribe("a")
    c.deliver("a", "x", 1)
    text = get("/metrics")
    for line in ("roostmq_connections 1.0", "roostmq_publish_received_total 1.0", "roostmq_subscriptions 1.0"):
        assert line in text
    assert 'roostmq_lane_busy_seconds_total{lane="0"}' in text
    assert 'roostmq_dropped_messages_total{reason="slow_reader"} 0.0' in text
    assert json.loads(get("/api/v1/info"))["connections"] == 1
    c.socket.close()
    assert running.stop() == 0


def test_sys_topics_as_mosquitto_names_them():
    running = start(["--port", "0", "--no-admin"], {"ROOST_SYS__INTERVAL_S": "1"})
    c = running.client()
    c.subscribe("$SYS/broker/clients/connected", "$SYS/broker/version", "$SYS/broker/load/messages/received/1min")
    seen = {}
    while not (
        {"clients/connected", "version", "load/messages/received/1min"} <= seen.keys()
        and seen["clients/connected"] == "1"
    ):
        m = c.message()
        seen[m.topic.removeprefix("$SYS/broker/")] = m.payload.decode()
    assert "RoostMQ" in seen["version"]
    c.socket.close()
    assert running.stop() == 0


def test_pub_and_sub():
    running = start(["--port", "0", "--no-admin"])
    at = ["-p", str(running.port)]
    sub = subprocess.Popen(
        [*ROOST, "sub", *at, "-t", "a/#", "-v", "-C", "4", "-q", "2"], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 20
    while not any('"event": "connected"' in line for line in running.log) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)
    assert roost("pub", *at, "-t", "a/b", "-m", "one", "-q", "1").returncode == 0
    assert roost("pub", *at, "-t", "a/c", "-l", "-q", "2", stdin="two\nthree\n").returncode == 0
    assert roost("pub", *at, "-t", "a/d", "-n", "-V", "311").returncode == 0
    out, _ = sub.communicate(timeout=30)
    assert out.splitlines() == ["a/b one", "a/c two", "a/c three", "a/d "]
    assert running.stop() == 0


def test_passwd(tmp_path):
    path = tmp_path / "passwords"
    assert roost("passwd", str(path), "ann", "-b", "one").returncode == 0
    assert roost("passwd", str(path), "bob", stdin="two\n").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_text()
    assert first.startswith("ann:$argon2id$")
    assert roost("passwd", str(path), "ann", "-b", "three").returncode == 0
    assert path.read_text().count("ann:") == 1
    assert path.read_text() != first
    assert roost("passwd", str(path), "ann", "-D").returncode == 0
    assert [line.partition(":")[0] for line in path.read_text().splitlines()] == ["bob"]
    done = roost("passwd", str(path), "eve", "-D")
    assert done.returncode == 1
    assert "no user `eve`" in done.stderr


def test_config_commands(tmp_path):
    good = tmp_path / "mosquitto.conf"
    good.write_text("listener 1884 127.0.0.1\nallow_anonymous true\nmax_queued_messages 7\n")
    converted = roost("config", "convert", str(good))
    assert converted.returncode == 0
    path = tmp_path / "roost.toml"
    path.write_text(converted.stdout)
    assert roost("config", "check", str(path)).returncode == 0
    assert "queue_messages_max = 7" in converted.stdout
    assert json.loads(roost("config", "schema").stdout)["properties"]["lanes"]["maximum"] == 64
    path.write_text('[access]\npassword_file = "/nowhere"\n')
    done = roost("config", "check", str(path))
    assert done.returncode == 1
    assert "/nowhere" in done.stderr


def test_a_blocked_interpreter_disturbs_no_client():
    """What must show, 7: the event loop of Python stands still for five seconds, and traffic goes on."""
    code = (
        "import signal, time, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: time.sleep(5))\n"
        "from roostmq.interface.cli import main\n"
        "main(['run', '--port', '0', '--no-admin', '--memory'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    from wire import Client

    assert process.stdout.readline() == "data memory\n"
    line = process.stdout.readline()
    address = ("127.0.0.1", int(line.rpartition(":")[2]))
    assert process.stdout.readline() == "ready\n"
    with Client(address) as c:
        c.subscribe("t")
        process.send_signal(10)
        begin, n = time.monotonic(), 0
        while time.monotonic() < begin + 4.5:
            c.deliver("t", f"{n}", 1)
            c.message("t", f"{n}")
            with Client(address, keep_alive=1) as other:
                other.ping()
            n += 1
    assert n > 20
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
