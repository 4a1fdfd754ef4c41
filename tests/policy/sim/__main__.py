"""Run seeds: `python -m policy.sim --seeds 1000`, `--without RULE`, `--each` for every rule in turn."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time

from policy.sim.cluster import Violation, World
from policy.sim.rules import RULES


def bad(seed: int, without: frozenset[str], seconds: int) -> str | None:
    """The violation that a seed finds."""
    try:
        World(seed, without).run(seconds)
    except Violation as found:
        return str(found)
    return None


def first_bad(without: frozenset[str], seeds: range, seconds: int, jobs: int) -> tuple[int, str] | None:
    """The first seed that finds a violation, and what it found."""
    look = functools.partial(bad, without=without, seconds=seconds)
    with multiprocessing.Pool(jobs) as pool:
        for seed, found in zip(seeds, pool.imap(look, seeds, chunksize=4), strict=True):
            if found is not None:
                return seed, found
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="policy.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60, help="simulated, each seed")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: all cores")
    parser.add_argument("--without", choices=RULES, action="append", default=[])
    parser.add_argument("--each", action="store_true", help="take out every rule in turn: each must be missed")
    a = parser.parse_args()
    seeds = range(a.first, a.first + a.seeds)
    failed = 0
    for without in [[rule] for rule in RULES] if a.each else [a.without]:
        begun = time.perf_counter()
        found = first_bad(frozenset(without), seeds, a.seconds, a.jobs)
        took = time.perf_counter() - begun
        count = found[0] - a.first + 1 if found else a.seeds
        speed = count * (a.seconds + 40) / took
        print(f"{'without ' + without[0] if without else 'all rules'}: {found or 'nothing found'} ({speed:,.0f} s/s)")
        failed += (found is None) if without else (found is not None)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
