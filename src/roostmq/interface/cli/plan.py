"""`roost plan`: show what a change would move, before it is made. docs/guide/partitions.md says how to read it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roostmq import engine
from roostmq.errors import ConfigError
from roostmq.interface.plot import Panel, draw
from roostmq.model import Member, NodeId, PartitionTable
from roostmq.policy import epochs, ring, table

NODES_MAX = 256
IDS_MAX = 10_000_000
DRAWS_MAX = 1000
DRAWN = 256
"""Nodes times draws that take a few seconds."""
PARTITIONS_EACH = 16
"""Partitions for each node that a cluster should have at least."""
STRATEGIES = {
    "alphabet": "ranges of the alphabet, by the first characters of the id",
    "equal": "equal ranges of the hash",
    "ring": "a ring with one point for each node",
    "virtual": f"a ring with {ring.POINTS_PER_NODE} virtual nodes for each node",
    "table": "the partition table of RoostMQ: the ring proposes, quotas dispose",
}


@dataclass(slots=True)
class Figures:
    """One strategy with so many nodes: shares and ratios, one for each draw of the hash key."""

    keys_moved: list[float] = field(default_factory=list)
    """Of all ids, since there was one node less; empty for the smallest number of nodes."""
    partitions_moved: list[float] = field(default_factory=list)
    """The same for partitions: how many have another owner at their first point. Empty for the alphabet."""
    balance: list[float] = field(default_factory=list)
    """Ids of the fullest node over the average."""


Comparison = dict[str, dict[int, Figures]]
"""By strategy and number of nodes."""


def parser() -> argparse.ArgumentParser:
    """Options of `roost plan`."""
    top = argparse.ArgumentParser(
        prog="roost plan",
        description="Show what a change would move, before it is made. Nothing is changed and no broker is needed.",
    )
    plans = top.add_subparsers(dest="plan", required=True, metavar="PLAN")
    text = "compare ways of dividing clients among nodes: how many move when a node joins, how even they are"
    lines = "\n".join(f"  {name:9} {what}" for name, what in STRATEGIES.items())
    p = plans.add_parser(
        "ring",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Ids are hashed as the broker hashes them.",
        epilog=f"strategies:\n{lines}\n\ndocs/guide/partitions.md says how to read the figures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--nodes", type=_span, default=(3, 8), metavar="LOW..HIGH", help="from so many nodes to so many; default: 3..8"
    )
    p.add_argument(
        "--partitions",
        type=int,
        metavar="P",
        help=f"partitions of the table, a power of two; default: {PARTITIONS_EACH} for each node, at least 64",
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument(
        "--ids", type=int, default=100_000, metavar="N", help="client ids CLIENT00000000 and on; default: 100000"
    )
    which.add_argument("--ids-file", type=Path, metavar="FILE", help="your client ids, one on each line")
    p.add_argument(
        "--draws", type=int, metavar="N", help="hash keys to average over; default: 32, fewer for many nodes"
    )
    p.add_argument("--json", action="store_true", help="print mean and worst of every figure as JSON")
    p.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the two diagrams of the guide")
    return top


def _span(text: str) -> tuple[int, int]:
    low, dots, high = text.partition("..")
    if not dots or not low.isdecimal() or not high.isdecimal() or not 1 <= int(low) <= int(high) <= NODES_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is not like 3..8, with 1 to {NODES_MAX} nodes")
    return int(low), int(high)


def main(words: list[str]) -> int:
    """Exit code 0; raises ConfigError for a file that cannot be read or written, PlacementError for a wrong P."""
    options = parser().parse_args(words)
    low, high = options.nodes
    draws = max(4, min(32, DRAWN // high)) if options.draws is None else options.draws
    for name, value, most in (("ids", options.ids, IDS_MAX), ("draws", draws, DRAWS_MAX)):
        if not 1 <= value <= most:
            raise ConfigError(f"--{name}: {value} is not between 1 and {most}")
    ids = read_ids(options.ids_file) if options.ids_file else [b"CLIENT%08d" % i for i in range(options.ids)]
    given = options.partitions
    partitions = max(64, 1 << (PARTITIONS_EACH * high - 1).bit_length()) if given is None else given
    table.empty_table(partitions, "")  # says what is wrong with the number
    found = compare(ids, range(low, high + 1), partitions, draws)
    if options.plot:
        _write(options.plot, plotted(found))
    if options.json:
        print(json.dumps(as_json(found, len(ids), partitions, draws), indent=2))
    else:
        print(told(found, len(ids), partitions, draws))
    return 0


def read_ids(path: Path) -> list[bytes]:
    """The lines of a file, each once, without the empty ones. Raises ConfigError."""
    try:
        ids = list(dict.fromkeys(line for line in path.read_bytes().splitlines() if line))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if not ids:
        raise ConfigError("there is no client id in it; one on each line is needed", file=str(path))
    return ids


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from None


def compare(ids: Sequence[bytes], nodes: range, partitions: int, draws: int) -> Comparison:
    """Let nodes join one by one and count, with as many keys as there are draws: 0, 1, 2 and so on, the same always."""
    found: Comparison = {name: {n: Figures() for n in nodes} for name in STRATEGIES}
    by_alphabet = sorted(ring.alphabet_point(each) for each in ids)
    starts = [ring.start_of(p, partitions) for p in range(partitions)]
    for draw_no in range(draws):

        def hash_ids(names: Sequence[bytes], key: int = draw_no) -> Sequence[int]:
            return engine.hash_ids((key, key), names)

        points = sorted(hash_ids(ids))
        now = table.empty_table(partitions, "")
        before: dict[str, ring.Ranges] = {}
        for n in nodes:
            members = [Member(NodeId(f"node-{i}"), 0, "") for i in range(1, n + 1)]
            after, now = _divisions(members, now, hash_ids)
            for name, ranges in after.items():
                keys = by_alphabet if name == "alphabet" else points
                figures = found[name][n]
                figures.balance.append(ring.imbalance(ring.counts(ranges, keys), [m.node for m in members]))
                if name in before:
                    figures.keys_moved.append(ring.moved(before[name], ranges, keys) / len(keys))
                    if name != "alphabet":
                        figures.partitions_moved.append(ring.moved(before[name], ranges, starts) / partitions)
            before = after
    return found


def _divisions(
    members: Sequence[Member], now: PartitionTable, hash_ids: ring.Hash
) -> tuple[dict[str, ring.Ranges], PartitionTable]:
    """Every strategy for these nodes, and the table that follows the present one."""
    nodes = [m.node for m in members]
    whole = ring.build_ring(members, hash_ids)
    now = epochs.apply(now, table.plan(now, members, whole, standbys=0))
    equal = ring.equal_ranges(nodes)
    plain = ring.build_ring(members, hash_ids, per_node=1)
    return {
        "alphabet": equal,
        "equal": equal,
        "ring": ring.ring_ranges(plain),
        "virtual": ring.ring_ranges(whole),
        "table": ring.table_ranges(now),
    }, now


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def told(found: Comparison, ids: int, partitions: int, draws: int) -> str:
    """The comparison for people: three tables."""
    lines = [f"{ids:,} client ids, {partitions} partitions, mean of {draws} hash keys", ""]
    lines += [f"  {name:9} {what}" for name, what in STRATEGIES.items()]
    head = "nodes     " + "".join(f"{name:>10}" for name in STRATEGIES)
    moved = (("clients that move when a node joins, %", "keys_moved"), ("partitions that move, %", "partitions_moved"))
    counts = list(found["table"])
    for title, which in moved:
        lines += ["", title, f"{head}{'least':>10}"] if len(counts) > 1 else []
        for n in counts[1:]:
            row = [_mean(getattr(found[name][n], which)) for name in STRATEGIES]
            cells = "".join(f"{'-':>10}" if v is None else f"{100 * v:10.1f}" for v in row)
            lines.append(f"{n - 1:3} ->{n:3} {cells}{100 / n:10.1f}")
    lines += ["", "clients of the fullest node, over the average", head]
    for n in counts:
        cells = "".join(f"{_mean(found[name][n].balance) or 1.0:10.2f}" for name in STRATEGIES)
        lines.append(f"{n:3}       {cells}")
    return "\n".join(lines)


def as_json(found: Comparison, ids: int, partitions: int, draws: int) -> dict[str, object]:
    """The comparison for programs; a share that there is not is null."""
    rows = [
        {
            "strategy": name,
            "nodes": n,
            **{f"{which}": _mean(getattr(figures, which)) for which in ("keys_moved", "partitions_moved", "balance")},
            "keys_moved_max": max(figures.keys_moved, default=None),
            "partitions_moved_max": max(figures.partitions_moved, default=None),
            "balance_max": max(figures.balance),
        }
        for name, by_nodes in found.items()
        for n, figures in by_nodes.items()
    ]
    return {"ids": ids, "partitions": partitions, "draws": draws, "strategies": STRATEGIES, "figures": rows}


def plotted(found: Comparison) -> str:
    """Movement and balance as two diagrams, SVG."""
    counts = list(found["table"])
    keys = [[_mean(figures.keys_moved) for figures in found[name].values()] for name in STRATEGIES]
    moved = [[None if v is None else 100 * v for v in line] for line in keys]
    balance = [[_mean(figures.balance) for figures in found[name].values()] for name in STRATEGIES]
    return draw(
        [
            Panel("Clients that move when one node joins", "nodes, with the new one", counts, moved, 0, 100, " %"),
            Panel(
                "Clients of the fullest node, over the average",
                "nodes",
                counts,
                balance,
                1,
                max(2, counts[-1]),
                logarithmic=True,
            ),
        ],
        list(STRATEGIES.values()),
    )
