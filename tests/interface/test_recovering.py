"""A start that takes its time, and a disk in trouble: what is printed, logged and answered. The engine is slowed down and
made to say things; the process, its signals and its HTTP are real.
"""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from roostmq.adapters.nats_server import free_ports

CODE = """
import json, os, time
from roostmq import engine
start, events, said = engine.Engine.start, engine.Engine.events, {said!r}
def slow(settings):
    time.sleep({slow_s})
    return start(settings)
def more(self):
    found = events(self)
    if said and os.path.exists({cue!r}.format(len(said))):
        name, fields = said.pop(0)
        found.append(engine.Event(name, fields))
    return found
engine.Engine.start, engine.Engine.events = staticmethod(slow), more
from roostmq.interface.cli import main
main(['run', '--memory', '--port', '0', '--admin-port', '{port}'])
"""


class Process:
    """A broker with a scripted engine."""

    def __init__(self, slow_s, said=(), cue="/nowhere"):
        (self.port,) = free_ports(1)
        code = CODE.format(slow_s=slow_s, port=self.port, said=list(said), cue=str(cue))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def get(self, path):
        """Status and JSON; waits until somebody answers."""
        until = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)
            except OSError:
                assert time.monotonic() < until and self.process.poll() is None
                time.sleep(0.05)

    def until(self, path, status):
        """The JSON of the first answer with this status."""
        end = time.monotonic() + 20
        while (found := self.get(path))[0] != status:
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found[1]

    def end(self):
        """SIGTERM; exit code, standard output, log lines."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out.splitlines(), [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def run():
    made = []

    def make(*args, **more):
        made.append(Process(*args, **more))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_a_long_recovery_shows_itself(run):
    """One line a second, and HTTP that says what goes on instead of a socket that does not answer."""
    p = run(5)
    assert p.get("/healthz") == (200, {"status": "ok"})
    status, answer = p.get("/readyz")
    assert status == 503
    assert answer["ready"] is False
    assert answer["reason"].startswith("recovering, ")
    assert "has not started: recovering" in p.get("/api/v1/info")[1]["error"]
    assert p.until("/readyz", 200) == {"ready": True}
    code, out, log = p.end()
    assert code == 0
    assert out[0] == "data memory"
    assert [line.split()[1] for line in out[1:-1]] == ["mqtt", "http"]
    assert out[-1] == "ready"
    seconds = [line["elapsed_s"] for line in log if line["event"] == "recovering"]
    assert len(seconds) >= 3 and seconds == sorted(set(seconds))


def test_told_to_end_while_it_recovers(run):
    """Reading a log changes nothing that a kill would not leave whole: the process ends at once."""
    p = run(60)
    assert p.process.stdout.readline() == "data memory\n"
    p.until("/readyz", 503)
    begin = time.monotonic()
    code, out, _ = p.end()
    assert (code, out) == (0, [])
    assert time.monotonic() - begin < 20


def test_told_to_end_while_the_engine_starts():
    """It ends in peace, whatever its threads are at just then: no abort, nothing on standard error."""
    words = [sys.executable, "-m", "roostmq", "run", "--memory", "--port", "0", "--no-admin", "--lanes", "8"]
    for turn in range(4):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "data memory\n"
        time.sleep(0.001 * turn)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "")


def test_a_disk_in_trouble_and_back(run, tmp_path):
    """`/readyz` is 503 with a reason for as long as it lasts; damage is a warning."""
    p = run(
        0,
        [
            ("disk", {"ok": False, "error": "No space left on device"}),
            ("damaged", {"where": "segment 3, byte 64", "what": "a record"}),
            ("disk", {"ok": True, "error": None}),
        ],
        cue=tmp_path / "cue-{}",
    )
    p.until("/readyz", 200)
    (tmp_path / "cue-3").touch()
    p.get("/api/v1/info")  # an answer of the engine, so that events are taken
    reason = p.until("/readyz", 503)["reason"]
    assert "No space left on device" in reason
    assert p.get("/healthz")[0] == 200
    for n in (2, 1):
        (tmp_path / f"cue-{n}").touch()
        p.get("/api/v1/info")
    p.until("/readyz", 200)
    _, _, log = p.end()
    lines = [(x["event"], x["level"]) for x in log if x["event"] in ("disk", "damaged")]
    assert lines == [("disk", "error"), ("damaged", "warning"), ("disk", "info")]
