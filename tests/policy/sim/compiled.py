"""The simulator and the policies that it runs, as C: `python -m policy.sim.compiled` takes what `policy.sim` takes.

Contract: the same code with the same seeds, translated by mypyc, twice as fast. It happens to a copy in `target/simulator`, as
compiled modules would stand before their sources. Needs a C compiler and the headers of Python (Debian: `gcc python3-dev`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COPY = ROOT / "target" / "simulator"
POLICIES = "epochs failover members quota ring standbys table wishes"
COMPILED = [
    "roostmq/model.py",
    *(f"roostmq/policy/{name}.py" for name in POLICIES.split()),
    *(f"policy/sim/{name}.py" for name in ("rules", "node", "cluster")),
]

SETUP = f"""
from mypyc.build import mypycify
from setuptools import setup
setup(name="simulator", packages=[], ext_modules=mypycify({COMPILED}))
"""


def translate() -> None:
    """Make the copy, unless it is as new as what it was made from."""
    made = COPY / "made"
    parts = (("roostmq", ROOT / "src" / "roostmq"), ("policy", ROOT / "tests" / "policy"))
    sources = [path for _, folder in parts for path in folder.rglob("*.py")]
    if made.exists() and all(path.stat().st_mtime < made.stat().st_mtime for path in sources):
        return
    shutil.rmtree(COPY, ignore_errors=True)
    for name, folder in parts:
        shutil.copytree(folder, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", SETUP, "build_ext", "--inplace"], cwd=COPY, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"the simulator cannot be translated:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    made.touch()


def main() -> int:
    translate()
    command = [sys.executable, "-m", "policy.sim", *sys.argv[1:]]
    return subprocess.run(command, cwd=COPY, env=os.environ | {"PYTHONPATH": str(COPY)}).returncode


if __name__ == "__main__":
    sys.exit(main())
