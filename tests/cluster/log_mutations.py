"""Every rule of the log on JetStream is taken out in turn, and `engine-nats/tests/fence` must notice.

Contract: copies the workspace's sources to target/mutants-nats (or --folder), applies one small patch, builds, runs the
test, and demands a failure; a mutant that does not build is an error, not a success. The tree without a mutation must
pass. Names are those of the model `log_fence` where it has the rule. Long: not in CI.

    python3 tests/cluster/log_mutations.py [--only NAME] [--seeds N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_S, RUN_S = 900, 600
COPIED = ("engine", "engine-nats", "load", "binding", "bench/null", "docs", "Cargo.toml", "Cargo.lock")


@dataclass(frozen=True)
class Mutation:
    """One rule less: in `file` (below engine-nats/src) `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


CHAIN, REPLAY = "chain.rs", "replay.rs"
TAKEN = [
    Mutation("expected-last: appends without a condition", CHAIN, "expect: Some(self.expect) }", "expect: None }"),
    Mutation(
        "fence: serves without its EPOCH in the log",
        CHAIN,
        "if known.epoch != self.epoch {",
        "if known.epoch > self.epoch {",
    ),
    Mutation(
        "ask-first: what is there is not compared with what is under way", CHAIN, "mine = Some(*at);", "mine = None;"
    ),
    Mutation(
        "ignore-lower: late batches of a lower epoch count",
        REPLAY,
        "Kind::Batch if header.epoch < self.known.epoch => Ok(None),",
        "Kind::Batch if header.epoch < self.known.epoch => Ok(Some(Appended { at, header, records })),",
    ),
    Mutation("adopt: the sequence of a late record is not taken", CHAIN, "self.expect = last;", "let _ = last;"),
    Mutation(
        "resign: a higher epoch behind the own end is passed over",
        CHAIN,
        ".filter(|e| *e > self.epoch)",
        ".filter(|_| false)",
    ),
    Mutation(
        "resign-before: a higher epoch before the own EPOCH is passed over", CHAIN, "if higher > epoch {", "if false {"
    ),
    Mutation("read-back: only the last message is looked at", CHAIN, "in &seen.found {", "in seen.found.last() {"),
    Mutation(
        "first-epoch: the last copy of an EPOCH counts",
        REPLAY,
        "header.epoch > self.known.epoch {\n                    self",
        "header.epoch >= self.known.epoch {\n                    self",
    ),
    Mutation(
        "tail-check and tail-compare: the own end is not looked at",
        CHAIN,
        "if from == 0 && there != written {",
        "if false {",
    ),
    Mutation(
        "ask-again: one leader that does not know is believed", CHAIN, "MISSES_MAX: u32 = 8", "MISSES_MAX: u32 = 1"
    ),
    Mutation("at-least: a log that is too short is begun again", CHAIN, ".max(f.at_least)", ""),
    Mutation("named-trim: given back before an append names the checkpoint", CHAIN, "|| named < self.trim", ""),
    Mutation(
        "front: a log whose beginning is missing is believed",
        REPLAY,
        "if self.trimmed && self.known",
        "if false && self.known",
    ),
    Mutation("chain: the append before is not compared", REPLAY, "header.before != known.at || ", ""),
]


def run(folder: Path, target: Path, seeds: int) -> tuple[bool, str]:
    """Builds and runs; whether the test passed, and what it said."""
    env = os.environ | {"ROOST_SEEDS": str(seeds), "CARGO_TARGET_DIR": str(target)}
    cargo = ["cargo", "test", "--quiet", "--release", "-p", "roostmq-engine-nats", "--test", "fence"]
    built = subprocess.run([*cargo, "--no-run"], cwd=folder, env=env, capture_output=True, text=True, timeout=BUILD_S)
    if built.returncode:
        sys.exit(f"does not build:\n{built.stderr[-3000:]}")
    done = subprocess.run(cargo, cwd=folder, env=env, capture_output=True, text=True, timeout=RUN_S)
    return done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=20000)
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "mutants-nats")
    parser.add_argument(
        "--target",
        type=Path,
        help="where cargo builds, and nothing else does: a mutant must not pass for the tree; default: in the folder",
    )
    args = parser.parse_args()
    target = args.target or args.folder / "target"
    for name in COPIED:
        source, place = ROOT / name, args.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        else:
            shutil.copy2(source, place)
    passed, said = run(args.folder, target, args.seeds)
    if not passed:
        sys.exit(f"fails without a mutation:\n{said[-3000:]}")
    survived = []
    for mutation in (m for m in TAKEN if args.only in m.name):
        path = args.folder / "engine-nats" / "src" / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            sys.exit(f"{mutation.name}: {mutation.old!r} stands {text.count(mutation.old)} times in {mutation.file}")
        path.write_text(text.replace(mutation.old, mutation.new))
        passed, _ = run(args.folder, target, args.seeds)
        path.write_text(text)
        print("SURVIVED" if passed else "caught  ", mutation.name, flush=True)
        survived += [mutation.name] if passed else []
    sys.exit(f"{len(survived)} not noticed" if survived else 0)


if __name__ == "__main__":
    main()
