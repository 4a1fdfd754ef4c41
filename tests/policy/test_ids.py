"""Client ids never cluster, however they are made: chi-squared per degree of freedom 0.9 to 1.1 over 4,096 buckets.

For 4,095 degrees of freedom its standard deviation is 0.022, so the bounds are 4.5 of them; keys are fixed, so a test that
passes once passes always.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

import pytest

from roostmq import engine
from roostmq.model import NodeId
from roostmq.policy import ring

COUNT, BITS = 400_000, 12
KEYS = [(1, 2), (0x0706050403020100, 0x0F0E0D0C0B0A0908), (0, 0)]
GUESS = (3, 4)
"""The key for which an attacker has chosen ids."""


def sequential() -> list[bytes]:
    return [b"%d" % i for i in range(COUNT)]


def prefixed() -> list[bytes]:
    return [b"CLIENT%08d" % i for i in range(COUNT)]


def vin() -> list[bytes]:
    """Vehicle identification numbers: maker, model, check digit, year, plant, serial number."""
    values = {c: i % 10 + 1 for i, c in enumerate(b"ABCDEFGHI")} | dict(zip(b"JKLMNOPQR", range(1, 10), strict=True))
    values |= dict(zip(b"STUVWXYZ", range(2, 10), strict=True)) | {48 + i: i for i in range(10)}
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    found = []
    for i in range(COUNT):
        text = b"WVWZZZ1J0%c%c%06d" % (b"JKLMNPRSTV"[i % 10], b"EWPM"[i // 10 % 4], i // 40)
        check = sum(values[c] * w for c, w in zip(text, weights, strict=True)) % 11
        found.append(text[:8] + (b"X" if check == 10 else b"%d" % check) + text[9:])
    return found


def uuids() -> list[bytes]:
    made = random.Random(5)
    return [str(uuid.UUID(int=made.getrandbits(128), version=4)).encode() for _ in range(COUNT)]


def at_random() -> list[bytes]:
    made = random.Random(6)
    return list({made.randbytes(12): None for _ in range(COUNT)})


def two_letters() -> list[bytes]:
    """As alike as ids can be: nineteen letters, each a or b."""
    return [format(i, "019b").translate({48: "a", 49: "b"}).encode() for i in range(COUNT)]


def adversarial() -> list[bytes]:
    """Ids that would all fall into one of 16 partitions if the key were the one that the attacker knows."""

    def chosen():
        for block in range(100):
            ids = [b"x%d" % i for i in range(block * COUNT, (block + 1) * COUNT)]
            yield from (each for each, point in zip(ids, engine.hash_ids(GUESS, ids), strict=True) if point >> 60 == 7)

    return list(islice(chosen(), COUNT))


def chi_squared(points: Sequence[int]) -> float:
    """Per degree of freedom."""
    found = Counter(point >> (64 - BITS) for point in points)
    mean = len(points) / (1 << BITS)
    return sum((found[bucket] - mean) ** 2 / mean for bucket in range(1 << BITS)) / ((1 << BITS) - 1)


@pytest.mark.parametrize(
    "make", [sequential, prefixed, vin, uuids, at_random, two_letters, adversarial], ids=lambda f: f.__name__
)
def test_ids_spread_evenly(make: Callable[[], list[bytes]]) -> None:
    ids = make()
    assert len(ids) == len(set(ids)) == COUNT
    for key in KEYS:
        assert 0.9 < chi_squared(engine.hash_ids(key, ids)) < 1.1


def test_an_attacker_who_knows_the_key_would_win() -> None:
    """Why the hash has a key, and why it is secret."""
    assert chi_squared(engine.hash_ids(GUESS, adversarial())) > 1000


@pytest.mark.parametrize("make", [prefixed, vin], ids=lambda f: f.__name__)
def test_the_alphabet_beside_it(make: Callable[[], list[bytes]]) -> None:
    """The article's example: by first letters one of three nodes has everybody, by the hash each has a third."""
    ids = make()
    three = [NodeId(name) for name in "abc"]
    by_letter = sorted(map(ring.alphabet_point, ids))
    assert chi_squared(by_letter) > 1000
    assert ring.imbalance(ring.counts(ring.equal_ranges(three), by_letter), three) == 3.0
    by_hash = sorted(engine.hash_ids(KEYS[0], ids))
    assert ring.imbalance(ring.counts(ring.equal_ranges(three), by_hash), three) < 1.01
