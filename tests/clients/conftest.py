"""A broker with every transport for real clients."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from conftest import Running, start

CONFIG = """
[listeners.tcp]
port = 0
[listeners.secure]
port = 0
[listeners.secure.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
[listeners.ws]
port = 0
websocket = true
websocket_path = "/mqtt"
"""


@dataclass
class Everywhere:
    running: Running
    ca: Path

    def at(self, transport: str) -> tuple[str, int]:
        return self.running.address({"tcp": "mqtt", "tls": "mqtts", "ws": "ws"}[transport])


@pytest.fixture(scope="session")
def everywhere(lanes: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    folder = tmp_path_factory.mktemp("clients")
    ca = trustme.CA()
    server = ca.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(folder / "key.pem")
    server.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "roost.toml").write_text(CONFIG.format(d=folder))
    running = start(["--config", str(folder / "roost.toml"), "--no-admin", "--lanes", str(lanes)])
    yield Everywhere(running, folder / "ca.pem")
    assert running.stop() == 0


def needed(program: str) -> str:
    """The path of a program: missing is a failure where CI is set, else a visible skip."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is needed for the tests of real clients")
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture(scope="session")
def mqttjs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command that runs the MQTT.js conversation."""
    node, npm = needed("node"), needed("npm")
    source, folder = Path(__file__).parent / "mqttjs", tmp_path_factory.mktemp("mqttjs")
    for name in ("package.json", "package-lock.json", "talk.mjs"):
        shutil.copy(source / name, folder)
    subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True, capture_output=True
    )
    return [node, str(folder / "talk.mjs")]
