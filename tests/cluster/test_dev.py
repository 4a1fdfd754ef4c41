"""`roost dev` as a person sees it: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roostmq.interface.cli.dev_table import table

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(120)]


def node(partitions: int, received: int, ready: str | None = None) -> dict[str, object]:
    gauges = {"partitions": partitions, "connections": 5, "sessions": 7, "publishes_waiting": 0}
    rows = [{"state": "serving"}] * 63 + [{"state": "moving"}]
    return {
        "info": {"counters": {"publish_received": received, "publish_sent": 0}, "gauges": gauges},
        "cluster": {"not_ready": ready, "table_version": 9, "members_version": 3, "partitions": rows},
    }


def test_the_table_says_what_each_node_has() -> None:
    before = {"n1": {"publish_received": 100, "publish_sent": 0}}
    text = table({"n1": node(40, 300), "n2": node(24, 0, "joining"), "n3": None}, before, 2.0)
    lines = text.splitlines()
    assert re.split(r" +", lines[1].strip()) == ["n1", "ready", "40", "5", "7", "100", "0", "0"]
    assert "not ready" in lines[2]
    assert "no answer" in lines[3]
    assert lines[4] == "partitions: 63 serving, 1 moving; table 9, members 3"


def test_a_terminal_gets_a_live_table(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "roostmq", "dev", "--nodes", "1", "--data", str(tmp_path)]
    with subprocess.Popen(words, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True) as process:
        os.close(theirs)
        said, end = "", time.monotonic() + 60
        while not ("64 serving" in said and "\x1b[" in said) and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                said += os.read(ours, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    os.close(ours)
    assert "ready" in said
    assert "\x1b[" in said, "it is drawn over what was there"
    assert re.search(r"n1 +ready +64 ", said), said
