"""A rolling upgrade under load and the way back: `python -m cluster.upgrade [--from REF]`, or `make upgrade`.

A cluster of the release before, which is the newest tag unless another commit is named, goes node by node to what is in
this folder and back again; its clients are those of the rolling restart. Exit code 2: there is nothing to come from.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.site import ClusterSite
from cluster.test_restart import roll

ROOT = Path(__file__).parents[2]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def built(ref: str) -> str:
    """The interpreter of that release, built below `target`."""
    commit = git("rev-parse", "--verify", f"{ref}^{{commit}}")
    if not commit:
        sys.exit(f"there is no commit `{ref}` here")
    folder = ROOT / "target" / "upgrade" / commit
    if not folder.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), commit], cwd=ROOT, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    subprocess.run(["make", "build", "PROFILE=ci"], cwd=folder, check=True, env=clean)
    return str(folder / ".venv" / "bin" / "python")


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.upgrade", description=__doc__)
    parser.add_argument("--from", dest="ref", default=None, help="a tag or commit; default: the newest tag")
    ref = parser.parse_args().ref or git("describe", "--tags", "--abbrev=0")
    if not ref:
        print("no release has a tag yet: name a commit with --from", file=sys.stderr)
        return 2
    before = built(ref)
    with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        site = ClusterSite(Path(folder))
        site.python = before
        asyncio.run(roll(site, [sys.executable, before]))
    print(f"from {ref} to this and back: every client has come back once each time, nothing acknowledged was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
