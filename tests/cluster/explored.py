"""What the models of a move share: run each configuration, take each rule out, print what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from durability.model import explore

LIMIT = 3_000_000
Found = tuple[int, bool, str, list[str]]
"""States, whether all were seen, what is wrong, the steps to it."""


class Model:
    """A machine in a few configurations, each made from the rules that are on."""

    def __init__(self, rules: Collection[str], machines: dict[str, Callable[[set[str]], Any]]) -> None:
        self.rules, self.machines = rules, machines

    def run(self, name: str, off: Iterable[str] = ()) -> Found:
        """Explore one configuration without some rules."""
        found: Found = explore(self.machines[name](set(self.rules) - set(off)), LIMIT)
        return found

    def bitten(self, rule: str) -> str:
        """What goes wrong without a rule, in the first configuration in which it does; empty: nothing."""
        for name in self.machines:
            _, _, wrong, steps = self.run(name, (rule,))
            if wrong:
                return f"{name}: {wrong}, after {len(steps)} steps"
        return ""

    def main(self, prog: str, about: str) -> int:
        """The command line: 0 if all is as it should be."""
        parser = argparse.ArgumentParser(prog=prog, description=about.splitlines()[0])
        parser.add_argument("--without", choices=sorted(self.rules))
        parser.add_argument("--each", action="store_true", help="leave out every rule in turn")
        a = parser.parse_args(sys.argv[1:])
        if a.each:
            missed = 0
            for rule in self.rules:
                found = self.bitten(rule)
                print(f"without {rule}: {found or 'NOTHING FOUND'}", flush=True)
                missed += not found
            return missed
        worst = 0
        for name in self.machines:
            states, complete, wrong, steps = self.run(name, (a.without,) if a.without else ())
            print(f"{name}: {states} states, {'complete' if complete else 'CUT'}, {wrong or 'no violation'}")
            for number, step in enumerate(steps, 1):
                print(f"  {number:2} {step}")
            worst |= bool(wrong)
        return worst
