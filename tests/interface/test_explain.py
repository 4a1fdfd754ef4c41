"""What people are told: pure texts, and what the admin port refuses before the engine is asked."""

import pytest

from roostmq.interface.api.kept import refusal
from roostmq.interface.cli.data import damage, inspected, numbers, verified
from roostmq.interface.explain import bare, columns, duration, explain, plain, size

DROP = {"at_ms": 1_790_000_000_000, "client_id": "meter", "topic": "a/b", "qos": 1, "reason": "queue_full"}
WHY = {
    "client_id": "meter",
    "found": True,
    "connected": False,
    "expiry_s": 3600,
    "queued": 12_345,
    "sent_unacknowledged": 3,
    "finished": 7,
    "subscriptions": ["a/#", "$share/g/c/+"],
    "topics": [{"topic": "a/b", "queued": 345}, {"topic": "a/c", "queued": 12_000}],
    "drops": [DROP, DROP, DROP | {"reason": "expired"}, DROP | {"topic": "a/c", "reason": "too_large"}],
}


def test_why_of_a_client():
    lines = explain(WHY, None)
    text = "\n".join(lines)
    assert lines[0] == "client `meter` is away; its session is kept for 1 h after its connection"
    for words in (
        "2 subscription(s): `a/#`, `$share/g/c/+`",
        "  queued                              12,345",
        "  acknowledged or otherwise finished       7",
        "  dropped                                  3",
        "  expired                                  1",
        "its queue was full (limits.queue_messages_max)  2",
        "the latest 4 of 4:",
    ):
        assert words in text
    assert text.index("a/c  12,000") < text.index("a/b     345")


def test_why_of_a_topic():
    text = "\n".join(explain(WHY, "a/b"))
    assert "`a/b` is matched by `a/#`" in text
    assert "too_large" not in text
    assert "  queued   345\n  dropped    2\n  expired    1" in text
    assert "matched by `$share/g/c/+`" in "\n".join(explain(WHY, "c/d"))
    assert "no subscription of it matches `b`" in "\n".join(explain(WHY, "b"))


def test_why_of_nobody_and_of_hostile_names():
    gone = WHY | {"found": False, "subscriptions": [], "topics": []}
    assert "has no session" in explain(gone, None)[0]
    assert "its queue was full" in "\n".join(explain(gone, None))
    hostile = WHY | {"client_id": "a\x1b[2Jb\n", "connected": True, "drops": [DROP | {"topic": "\x07\u202e"}]}
    text = "\n".join(explain(hostile, None))
    assert "client `a\\x1b[2Jb\\n` is connected" in text
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text


def test_small_words():
    assert [duration(s) for s in (0, 59, 60, 7200, 86_400, 90)] == ["0 s", "59 s", "1 min", "2 h", "1 d", "90 s"]
    assert [size(n) for n in (0, 1023, 1024, 3 * 2**30)] == ["0 bytes", "1,023 bytes", "1.0 KiB", "3.0 GiB"]
    assert columns([("a", 1), ("bcd", 1000)]) == ["  a        1", "  bcd  1,000"]
    assert [bare(f) for f in ("a/b", "$share/g/a/b", "$share/g")] == ["a/b", "a/b", "$share/g"]
    assert plain("ä\0") == "ä\\x00"
    assert numbers({"sessions": 1, "messages": 2000}) == "1 sessions, 2,000 messages"


def test_data_for_people():
    found = {
        "version": 1,
        "incarnation": 7,
        "partitions": 8,
        "segments": [{"number": 1, "bytes": 33_554_432, "state": "active"}],
        "log_bytes": 33_554_432,
        "checkpoint": None,
        "sessions": 1000,
        "subscriptions": 2000,
        "queued": 5,
        "queued_bytes": 2048,
        "retained": 1,
        "groups": 0,
        "digests": {str(n): "ab" * 8 for n in range(8)},
        "damaged": [],
        "torn": {"where": "segment 1, byte 4096", "bytes": 100},
    }
    text = "\n".join(inspected("/d", found))
    for words in (
        "/d\n",
        "32.0 MiB in 1 segments",
        "none yet",
        "5 messages, 2.0 KiB",
        "    7: abab",
        "torn tail at segment 1",
    ):
        assert words in text
    broken = {
        "ok": False,
        "checked_records": 10,
        "checked_bytes": 1000,
        "torn": None,
        "damaged": [{"where": "segment 1, byte 64", "what": "a bad checksum"}],
        "choices": ["start it", "restore a backup"],
    }
    assert verified("/d", broken)[0] == "/d: damaged, 10 records, 1,000 bytes read"
    assert verified("/d", broken)[-2:] == ["  1. start it", "  2. restore a backup"]
    assert damage(broken) == ["", "damaged: segment 1, byte 64: a bad checksum"]


@pytest.mark.parametrize(
    ("admin", "host", "file", "status"),
    [
        ("127.0.0.1", "127.0.0.1:18083", "{dir}/new", None),
        ("::1", "[::1]:18083", "{dir}/new", None),
        ("127.0.0.1", "localhost:18083", "{dir}/new", None),
        ("0.0.0.0", "127.0.0.1:18083", "{dir}/new", 403),
        ("127.0.0.1", "rebound.example:18083", "{dir}/new", 403),
        ("127.0.0.1", "", "{dir}/new", 403),
        ("127.0.0.1", "[", "{dir}/new", 403),
        ("127.0.0.1", "127.0.0.1", "new", 400),
        ("127.0.0.1", "127.0.0.1", "{dir}/nowhere/new", 400),
        ("127.0.0.1", "127.0.0.1", "{dir}/old", 409),
        ("127.0.0.1", "127.0.0.1", "{dir}/link", 409),
    ],
)
def test_an_export_over_http_is_refused(tmp_path, admin, host, file, status):
    """Only for this machine, and never over a file that is there, be it a link to nothing."""
    (tmp_path / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    found = refusal(admin, host, file.format(dir=tmp_path))
    assert (found[0] if found else None) == status
