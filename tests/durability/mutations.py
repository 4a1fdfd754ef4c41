"""Every guard of the engine is taken out in turn, and the harness that is meant to notice must fail.

Contract: copies engine, binding and docs to target/mutants (or --folder), applies one small patch, builds, runs the
harness (`power_cut`: partitions and writer on a simulated disk; `log_thread`: the log's thread on it; `log_reader`: bytes
that are not what was written; `golden`: directories of every version; `lanes`: a lane that panics; `disk_bound`: how much
it takes), and demands a failure; a mutant that does not build is an error, not a success. The tree without a mutation
must pass. Names are those of the rules of the model (model_log.py) where there is one. Long: not in CI.

    python3 tests/durability/mutations.py [--only NAME] [--seeds N]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
POWER, THREAD, GOLDEN, LANES = "power_cut", "log_thread", "golden", "lanes"
DISK, READER = "disk_bound", "log_reader"
TARGETS = {name: ["--test", name] for name in (POWER, THREAD, GOLDEN, DISK, READER)} | {LANES: ["--lib"]}
CASES = "10000"
"""Histories of a group: with the 300 of CI, and now and then with 3,000, two guards of 49 were not missed."""
FILTERS = {LANES: ["lane::log_tests", "group_tests", "counted_once", "bodies_on_disk_are_delivered"]}
BUILD_S, RUN_S = 900, 600


@dataclass(frozen=True)
class Mutation:
    """One guard less: in `file` (below engine/src) `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    harness: str = POWER


PUBLISH, DELIVER, WALK = "partition/publish.rs", "partition/deliver.rs", "partition/walk.rs"
WRITER, THREADED, CHECKPOINT = "log/writer.rs", "log/thread.rs", "log/checkpoint.rs"
SYNCED = """        if sync {
            open.file.sync()?;
        }
"""
COUNTED = """        open.end = align(open.end + len);
        open.filled = open.filled.max(open.end);
        self.end = address(open.number, open.end);
"""
TAKEN = [
    Mutation(
        "ack-after-sync: PUBACK and PUBREC at once",
        PUBLISH,
        "if wait && !at_once { self.when_safe(answer, out) } else { out.push(answer) }",
        "let _ = (wait, at_once);\n            out.push(answer);",
    ),
    Mutation(
        "ack-after-sync: of retained messages at once",
        PUBLISH,
        "if at_once { out.push(answer) } else { self.when_safe(answer, out) }",
        "let _ = at_once;\n            out.push(answer);",
    ),
    Mutation(
        "dropped-waits-too: a repeat is answered at once", PUBLISH, "let mut wait = true;", "let mut wait = false;"
    ),
    Mutation(
        "pubrel-after-received: PUBREL before the record of PUBREC",
        DELIVER,
        "self.commit(durable, Record::Received { slot, index });\n                self.when_safe(Effect::Pubrel "
        "{ connection, id, reason: Reason::SUCCESS }, out);",
        "self.commit(durable, Record::Received { slot, index });\n                out.push(Effect::Pubrel "
        "{ connection, id, reason: Reason::SUCCESS });",
    ),
    Mutation(
        "pubcomp-after-released: PUBCOMP before the release",
        PUBLISH,
        "if durable { self.when_safe(pubcomp, out) } else { out.push(pubcomp) }",
        "out.push(pubcomp)",
    ),
    Mutation(
        "qos2-leaves-when-safe: QoS 2 at once",
        PUBLISH,
        "let waits = d.qos == QoS::ExactlyOnce || self.rules.deliver_after_safe;",
        "let waits = self.rules.deliver_after_safe;",
    ),
    Mutation(
        "connack-after-sync: CONNACK at once",
        "partition/attach.rs",
        "self.when_safe(attached, out)",
        "out.push(attached)",
    ),
    Mutation(
        "suback-after-sync: SUBACK and UNSUBACK at once",
        "partition/mod.rs",
        "self.when_safe(Effect::Fenced { question }, out)",
        "out.push(Effect::Fenced { question })",
    ),
    Mutation(
        "origin-window: a repeat is taken again",
        PUBLISH,
        "if self.state.taken(head.origin) {",
        "if self.state.taken(head.origin) && head.origin.n == 0 {",
    ),
    Mutation(
        "origin-counts-when-skipped: only with a session",
        "record/replay.rs",
        "self.state.place(m.origin, body.as_ref(),",
        "let origin = if to.is_empty() { crate::message::Origin::default() } else { m.origin };\n"
        "        self.state.place(origin, body.as_ref(),",
    ),
    Mutation(
        "same-n: a repeat has a new number",
        PUBLISH,
        "let n = known.unwrap_or_else(|| s.held.as_ref().map_or(1, |h| h.next()));",
        "let n = s.held.as_ref().map_or(1, |h| h.next());",
    ),
]
REUSED = [
    Mutation(
        "index-not-reused: a checkpoint forgets where an empty queue was",
        "record/encode.rs",
        "[s.ends_at_ms, s.will_at_ms, s.queue.base(),",
        "[s.ends_at_ms, s.will_at_ms, 0,",
    ),
    Mutation(
        "identifier-after-safe-finish: free with the acknowledgement",
        "queue.rs",
        "        if safe >= last {\n            self.freed",
        "        if safe >= last || last > 0 {\n            self.freed",
    ),
    Mutation(
        "n-not-reused: a checkpoint forgets the numbers of released identifiers",
        "record/encode.rs",
        "w.v(held.map_or(0, crate::inflight::Held::last));",
        "w.v(0);",
    ),
    Mutation(
        "n-not-reused: a released number is given again",
        "inflight.rs",
        "        let Some(at) = self.ids.iter().position(|(i, _)| *i == id) else { return false };\n",
        "        let Some(at) = self.ids.iter().position(|(i, _)| *i == id) else { return false };\n"
        "        self.last -= u64::from(self.ids.get(at).is_some_and(|(_, n)| *n == self.last));\n",
    ),
    Mutation(
        "uid-with-incarnation: origins go on without it",
        "partition/recover.rs",
        "p.next_uid = make_uid(number, resumed.incarnation, 1)",
        "p.next_uid = make_uid(number, 1, 1)",
    ),
]
LOGGED = [
    Mutation("a group is not synced", WRITER, SYNCED, "        let _ = sync;\n"),
    Mutation(
        "a failed sync is taken as written",
        WRITER,
        "            open.file.sync()?;\n        }\n        open.end",
        "            let _ = open.file.sync();\n        }\n        open.end",
    ),
    Mutation("rewrite-after-failed-sync: what failed counts", WRITER, SYNCED + COUNTED, COUNTED + SYNCED),
    Mutation(
        "the log's thread does not sync",
        THREADED,
        "let sync = self.options.sync_every_ms == 0;",
        "let sync = self.options.sync_every_ms > 60_000;",
        THREAD,
    ),
    Mutation(
        "recovered-is-synced: the last group is not written again",
        WRITER,
        "            writer.copy(&last)?;\n",
        "            let _ = &last;\n",
    ),
    Mutation(
        "recovered-is-synced: written again, not synced",
        WRITER,
        "        open.file.sync()?;\n        self.bytes_written += u64::from(len);\n",
        "        self.bytes_written += u64::from(len);\n",
    ),
    Mutation(
        "the name of a new segment is not synced",
        WRITER,
        "        self.sync_names()?;\n        self.bytes_written += head",
        "        self.bytes_written += head",
    ),
    Mutation(
        "group-atomic: a torn group counts as far as it goes",
        "log/scan.rs",
        "if last && !is_whole(&group, body) {",
        "if last && !is_whole(&group, body) && body.is_empty() {",
    ),
    Mutation(
        "group-atomic: a sound record of an older group counts",
        "log/scan.rs",
        "    group.has_body(body) && has_sound_records(group, body)",
        "    has_sound_records(group, body)",
        READER,
    ),
    Mutation(
        "damage: a sound record of an older group counts",
        "log/scan.rs",
        "    if !group.has_body(body) && has_sound_records(group, body) {",
        "    if group.len == 0 && !group.has_body(body) {",
        READER,
    ),
    Mutation(
        "groups of a spare segment's earlier life count", "log/frame.rs", " || u64_at(b, 8) != at {", " || at == 0 {"
    ),
]
TRIMMED = [
    Mutation(
        "named-when-safe: complete when the first lane has finished",
        CHECKPOINT,
        "        if walking.missing > 0 {",
        "        if walking.missing > self.lanes {",
    ),
    Mutation(
        "the segment in which the checkpoint begins goes",
        CHECKPOINT,
        "**n < segment_of(begin)",
        "**n <= segment_of(begin)",
    ),
    Mutation(
        "named-before-delete: segments go first",
        THREADED,
        "let result = self.directory.set_identity(&self.identity);\n"
        "            if result.and_then(|()| self.writer.give_back(&complete.free)).is_err() {",
        "let result = self.writer.give_back(&complete.free);\n"
        "            if result.and_then(|()| self.directory.set_identity(&self.identity)).is_err() {",
        THREAD,
    ),
    Mutation(
        "wanted bodies are not counted",
        WALK,
        "*walked.live.entry(segment).or_default() += u64::from(e.len) + RECORD_OVERHEAD;",
        "*walked.live.entry(segment).or_default() += 0;",
    ),
    Mutation(
        "moved-before-delete: bodies of an emptied segment stay",
        WALK,
        "walk.moves.entry(e.at).or_default().push((slot, s.uid, index));",
        "walk.moves.entry(e.at).or_default();",
    ),
    Mutation(
        "slice-of-safe: bodies on their way are not written again",
        WALK,
        "            self.write_moved(&body, &moves);\n        ",
        "            let _ = (body, moves);\n        ",
    ),
]
FORMAT = [
    Mutation(
        "format: two kinds of records change places",
        "record/wire.rs",
        "pub const HELD: u8 = 10;\n    pub const RELEASED: u8 = 11;",
        "pub const HELD: u8 = 11;\n    pub const RELEASED: u8 = 10;",
        GOLDEN,
    ),
    Mutation(
        "format: fields of a group's place change places",
        "record/decode.rs",
        "GroupPlace { partition, uid, index: self.v()?, n: self.v()? }",
        "GroupPlace { partition, uid, n: self.v()?, index: self.v()? }",
        GOLDEN,
    ),
    Mutation(
        "format: fields of the batch header change places",
        "log/frame.rs",
        "count: u32_at(b, 16),\n            len: u32_at(b, 20),",
        "count: u32_at(b, 20),\n            len: u32_at(b, 16),",
        GOLDEN,
    ),
]
ANEW = [
    Mutation(
        "pieces-before-mail: a tick that was not logged is told to others",
        "lane/mod.rs",
        "        self.take_back_mail();\n",
        "",
        LANES,
    ),
    Mutation(
        "a group without its members drops what it gets",
        "partition/group.rs",
        "!(group.keeps() || group.logged && group.is_empty())",
        "!group.keeps()",
        LANES,
    ),
    Mutation(
        "numbers of batches begin anew",
        "partition/peer.rs",
        "        self.journal.go_on_after(&before.journal);\n",
        "",
        LANES,
    ),
    Mutation(
        "a lane that begins anew forgets its log",
        "port/recovery.rs",
        "let mine = (0..).zip(all).filter(|(number, _)| shared.ring.home(*number) == lane);",
        "let mine = (0..).zip(all).filter(|(number, _)| shared.ring.home(*number) == lane + 64);",
        LANES,
    ),
    Mutation(
        "what the lane before it kept stays counted",
        "partition/peer.rs",
        "        self.rules.queued.shift(messages, bytes);\n",
        "        let _ = (messages, bytes);\n",
        LANES,
    ),
]
BOUND = [
    Mutation(
        "waste begins no checkpoint",
        CHECKPOINT,
        "grown || wasteful && (self.progress",
        "grown || wasteful && total == 0 && (self.progress",
        DISK,
    ),
    Mutation(
        "mostly dead segments stay",
        CHECKPOINT,
        "self.sparse.drain(..).take(EMPTIED_MAX).collect()",
        "self.sparse.drain(..).take(0).collect()",
        DISK,
    ),
    Mutation(
        "what a client does not take at once is forgotten before it is sent",
        "partition/deliver.rs",
        "                    came.push((index, entry.len));\n                    entry.body = Some(body);\n",
        "                    let len = entry.len;\n                    entry.body = Some(body);\n"
        "                    self.keep_fetched(r, index, len);\n                    came.push((index, len));\n",
        LANES,
    ),
]
SHARED = [
    Mutation(
        "its-number: a group hears of any number",
        "shared.rs",
        "Place::With { session, n } if session.uid == member.uid && n == number)",
        "Place::With { session, .. } if session.uid == member.uid && number > 0)",
        LANES,
    ),
    Mutation(
        "returned-in-log: what was queued is returned at once",
        "partition/group.rs",
        "                self.when_safe(Effect::GroupReturn { place, session }, out);\n",
        "                out.push(Effect::GroupReturn { place, session });\n",
        LANES,
    ),
    Mutation(
        "returned-in-log: what was not queued leaves no trace",
        "partition/group.rs",
        "        self.commit(true, Record::NotTaken { group: place.uid, n: place.n });\n",
        "",
        LANES,
    ),
    Mutation(
        "burned: a number that was given back may be taken again",
        "inflight.rs",
        "            self.above.push(n | RETURNED);\n",
        "            let _ = RETURNED;\n",
        LANES,
    ),
    Mutation(
        "ask-heir: nobody is asked",
        "partition/group.rs",
        "            had.into_iter().for_each(|d| self.group_send(uid, d, out));\n        }\n    }\n\n    /// A message for",
        "            drop(had);\n        }\n    }\n\n    /// A message for",
        LANES,
    ),
]
MUTATIONS = [*SHARED, *TAKEN, *REUSED, *LOGGED, *TRIMMED, *FORMAT, *ANEW, *BOUND]


class Workshop:
    """A copy of the sources with a build folder of its own, kept from mutant to mutant."""

    def __init__(self, folder: Path, seeds: int) -> None:
        self.source, self.seeds = folder / "source", seeds
        shutil.rmtree(self.source, ignore_errors=True)
        for name in ("engine", "engine-nats", "load", "binding", "bench", "docs"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("target"))
        for name in ("Cargo.toml", "Cargo.lock"):
            shutil.copy2(ROOT / name, self.source / name)
        (self.source / "engine" / "src" / "lib.rs").touch()  # an interrupted run may have left the build of a mutant
        self.target = folder / "target"

    def cargo(self, harness: str, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        command = ["cargo", "test", "--quiet", "-p", "roostmq-engine", *TARGETS[harness], *words]
        env = {**os.environ, "CARGO_TARGET_DIR": str(self.target), "RUST_BACKTRACE": "0"}
        env |= {"ROOST_SEEDS": str(self.seeds if harness == POWER else max(self.seeds // 5, 20)), "ROOST_CASES": CASES}
        run = subprocess.run(
            command,
            cwd=self.source,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        return run

    def fails(self, harness: str) -> str:
        """Builds and runs it: empty when it passes, else what it found first."""
        built = self.cargo(harness, "--no-run", timeout=BUILD_S)
        if built.returncode:
            raise SystemExit(f"it does not build:\n{built.stdout[-3000:]}")
        try:
            run = self.cargo(harness, "--", *FILTERS.get(harness, []), timeout=RUN_S)
        except subprocess.TimeoutExpired:
            return f"no end within {RUN_S} s"
        if run.returncode == 0:
            return ""
        found = re.findall(r"panicked at [^\n]*:\n([^\n]*)", run.stdout)
        found = [line for line in found if "left != right" not in line]  # the panic that the test asks for
        return found[0] if found else run.stdout[-200:].replace("\n", " ")

    def try_out(self, m: Mutation) -> str:
        path = self.source / "engine" / "src" / m.file
        whole = path.read_text()
        if whole.count(m.old) != 1:
            raise SystemExit(f"{m.name}: its place stands {whole.count(m.old)} times in {m.file}")
        path.write_text(whole.replace(m.old, m.new))
        try:
            return self.fails(m.harness)
        finally:
            path.write_text(whole)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations whose name contains it")
    parser.add_argument("--seeds", type=int, default=300, help="of power_cut (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "mutants")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if args.only in m.name]
    workshop = Workshop(args.folder, args.seeds)
    for harness in sorted({m.harness for m in chosen}):
        if word := workshop.fails(harness):
            raise SystemExit(f"{harness} fails without a mutation: {word}")
        print(f"{harness} passes without a mutation", flush=True)
    missed = 0
    for m in chosen:
        began = time.monotonic()
        word = workshop.try_out(m)
        missed += not word
        seconds = time.monotonic() - began
        print(f"{'caught' if word else 'MISSED':7}{m.harness:11}{seconds:4.0f} s  {m.name}  [{word[:90]}]", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
