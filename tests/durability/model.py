"""The rules of docs/formats/durability.md as a state machine that is explored completely.

One process, one log written in groups, one partition per lane (A, B, C). A step is one event in one lane: it applies its
records in memory, hands them to the log as a piece, then sends mail to other lanes. A sync makes a whole group safe and
carries out what waited for it. Faults (a budget in each configuration): a crash (the group on its way is on the disk or
not, what is behind it is gone), a sync that fails, a client that is cut off. Rules and log are in model_log.py;
four small machines use them:

  Path        QoS 2 from a publisher's session in A to a subscriber's session in B (model_sessions.py)
  Sessions    CONNACK, SUBACK, what a publisher without a session may rely on, class `memory` (model_sessions.py)
  Shares      a group in C with two members (model_shares.py)
  Checkpoint  slices while traffic runs, moved bodies, deleted segments; its own log (model_checkpoint.py)

Left out: time, wills, expiry, refusals, the bytes; a lost packet is a client cut off before it was sent.

    python3 tests/durability/model.py [--config NAME] [--without RULE] [--each] [--rules]
"""

import argparse
import os
import sys
import time
from itertools import chain
from types import SimpleNamespace

if not __package__:  # run as a script: the package is looked up from tests/
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from durability.model_checkpoint import Checkpoint
from durability.model_log import RULES
from durability.model_sessions import Path, Sessions
from durability.model_shares import Shares

# name: machine, bounds, smaller bounds for the tests, the rules that must bite here
CONFIGS = {
    "publisher": (
        Path,
        dict(K=3, fed=0, W=2, M=9, R=0, F=2, other=0),
        dict(F=1),
        "ack-after-sync dropped-waits-too held-before-fan-out same-n n-not-reused origin-window-in-enqueued "
        "pieces-before-mail one-queue pubcomp-after-released rewrite-after-failed-sync recovered-is-synced",
    ),
    "subscriber": (
        Path,
        dict(K=3, fed=3, W=1, M=2, R=2, F=2, other=0),
        dict(),
        "pubrel-after-received identifier-from-index identifier-after-safe-finish",
    ),
    "through": (Path, dict(K=2, fed=0, W=1, M=2, R=1, F=2, other=1), dict(F=1), "qos2-leaves-when-safe"),
    "sessions": (
        Sessions,
        dict(K=2, F=2, memory=(), leaves=False),
        dict(F=1),
        "connack-after-sync suback-after-sync interest-before-serving uid-with-incarnation incarnation-before-serving",
    ),
    "leaving": (Sessions, dict(K=1, F=2, memory=(), leaves=True), dict(F=1), "unsuback-after-sync"),
    "memory": (Sessions, dict(K=3, F=1, memory=(1, 3), leaves=False), dict(K=2), "interest-before-serving"),
    "share-exactly": (
        Shares,
        dict(K=1, F=2, exactly=True, apart=True),
        dict(),
        "given-before-dispatch member-knows-origin given-again finished-answers-again returned-answers-again "
        "recovered-counts-as-sent",
    ),
    "share-together": (Shares, dict(K=2, F=1, exactly=True, apart=False), dict(K=1, F=2), "dispatch-number-not-reused"),
    "share-least": (Shares, dict(K=2, F=1, exactly=False, apart=True), dict(K=1), "given-again"),
    "checkpoint": (
        Checkpoint,
        dict(T=2, V=1, F=1, checkpoints=1),
        dict(T=1),
        "group-atomic slice-replaces session-with-queue skip-unknown origin-counts-when-skipped slice-of-safe "
        "address-follows named-when-safe dead-when-safe moved-before-delete index-not-reused",
    ),
    "checkpoints": (Checkpoint, dict(T=1, V=0, F=0, checkpoints=2), dict(), "named-before-delete"),
}


def explore(machine, limit=1_000_000):
    """Visits every state, nearest first. Returns (states, complete, what is wrong, the steps to it)."""
    first = machine.first()
    names = tuple(vars(first))
    start = tuple(vars(first).values())
    came, border = {start: None}, [start]

    def trace(state):
        steps = []
        while came[state]:
            state, label = came[state]
            steps.append(label)
        return steps[::-1]

    while border and len(came) < limit:
        further = []
        for state in border:
            w = SimpleNamespace(**dict(zip(names, state, strict=True)))
            at_rest = True
            for fault, (label, act, *args) in chain(
                ((0, step) for step in machine.steps(w)), ((1, step) for step in machine.faults(w))
            ):
                after = SimpleNamespace(**vars(w))
                after.f -= fault
                act(after, *args)
                at_rest &= bool(fault)
                key = tuple(vars(after).values())
                if key not in came:
                    came[key] = (state, label)
                    further.append(key)
                    wrong = after.wrong or machine.bad(after)
                    if wrong:
                        return len(came), True, wrong, trace(key)
            if at_rest and machine.rest(w):
                return len(came), True, "at rest: " + machine.rest(w), trace(state)
        border = further
    return len(came), not border, "", []


def run(name, off=(), small=False, limit=1_000_000):
    """Explores one configuration without some rules."""
    machine, options, smaller, _ = CONFIGS[name]
    return explore(machine(set(RULES) - set(off), **{**options, **(smaller if small else {})}), limit)


def bites(rule):
    """Configurations in which the rule is needed."""
    return [name for name, config in CONFIGS.items() if rule in config[3].split()]


def report(name, off=()):
    """Runs and prints one configuration; true if something is wrong."""
    began = time.time()
    states, complete, wrong, steps = run(name, off)
    what = "VIOLATION: " + wrong if wrong else "no violation" if complete else "CUT"
    without = f"without {', '.join(off)} " if off else ""
    print(f"{without}{name}: {states} states, {time.time() - began:.1f} s, {what} {len(steps) or ''}", flush=True)
    return steps


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS)
    parser.add_argument("--without", action="append", default=[], choices=sorted(RULES), metavar="RULE")
    parser.add_argument("--each", action="store_true", help="leave out every rule in turn where it must bite")
    parser.add_argument("--rules", action="store_true", help="list the rules")
    args = parser.parse_args()
    if args.rules:
        for rule, meaning in RULES.items():
            print(f"{rule:28}{meaning}  [{', '.join(bites(rule))}]")
        return 0
    if args.each:
        return sum(not report(name, [rule]) for rule in RULES for name in bites(rule))
    needed = {name for rule in args.without for name in bites(rule)} or CONFIGS
    names = [args.config] if args.config else [name for name in CONFIGS if name in needed]
    found = [steps for name in names if (steps := report(name, args.without))]
    for number, step in enumerate(found[0] if found else (), 1):
        print(f"  {number:2} {step}")
    return int(bool(found) != bool(args.without))


if __name__ == "__main__":
    sys.exit(main())
