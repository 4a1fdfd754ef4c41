"""Where the time of the broker goes under a named work: `make profile WORK=qos1`.

Samples the broker with `perf` (Debian: linux-perf) while `roost bench` loads it, prints the functions that take most,
and leaves its data for `perf report` and `perf annotate`. Kernel functions are shown where kernel.perf_event_paranoid
allows it (1 or lower, or root).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time

from brokers import ROOT, on_cores, roost, running
from works import TRAFFIC, load

WORKS = dict(zip(("qos0", "qos1", "qos2", "fan-in", "fan-in-qos1", "fan-out", "alone", "open"), TRAFFIC, strict=False))


def main() -> int:
    """Load, sample, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--lines", type=int, default=40, help="functions to print")
    a = parser.parse_args()
    perf = shutil.which("perf")
    if perf is None:
        print("profile: perf is not installed: apt install linux-perf", file=sys.stderr)
        return 1
    out = ROOT / "target" / f"perf-{a.work}.data"
    with running(roost()) as broker:
        record = [perf, "record", "-q", "-F", "999", "-o", out, "-p", broker.pid, "--", "sleep", a.seconds]
        sampling = subprocess.Popen(["sh", "-c", f"sleep 1; exec {' '.join(map(str, record))}"])
        report = load(broker, WORKS[a.work].work, *WORKS[a.work].options, "--seconds", a.seconds + 1)
        sampling.wait()
        time.sleep(0.1)
    step = report["steps"][0]
    print(f"{a.work}: {step['per_second']:,.0f} per second, {step['broker']['us_each']:.2f} us of CPU each\n")
    shown = subprocess.run(
        on_cores((0,), perf, "report", "--stdio", "--percent-limit", "0.5", "-i", out),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in shown.stdout.splitlines() if line.strip() and not line.startswith("#")]
    print("\n".join(lines[: a.lines]))
    print(f"\nmore: perf report -i {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
