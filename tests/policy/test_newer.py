"""What nodes kept beside NATS continues a backup up to the first append that is missing, and not one further."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roostmq.model import PartitionId
from roostmq.policy.newer import Append, end_of, newer

P = PartitionId(5)


def log_of(steps: list[int]) -> list[Append]:
    """A log as owners write it: 0 is a new owner, another number a batch of so many records; addresses have holes."""
    log, epoch, head, index = [], 0, 0, 0
    for position, count in enumerate([0, *steps]):
        address = 3 * position + 2
        if count == 0:
            epoch += 1
            log.append(Append(address, P, True, epoch, 0, 0, 0))
        else:
            log.append(Append(address, P, False, epoch, index, count, head))
            index += count
        head = address
    return log


@given(st.lists(st.integers(0, 3), max_size=12), st.data())
def test_a_log_is_continued_up_to_the_first_gap(steps: list[int], data: st.DataObject) -> None:
    log = log_of(steps)
    backed_up = data.draw(st.integers(0, len(log)))
    lost = data.draw(st.sets(st.integers(backed_up, len(log)), max_size=3))
    ends = {P: end_of(log[backed_up - 1])} if backed_up else {}
    kept = [a for n, a in enumerate(log) if n not in lost]
    late = [Append(a.address + 1, P, False, a.epoch - 1, 0, 1, 0) for a in kept if a.is_epoch]
    found = newer(ends, data.draw(st.permutations(kept + late))).get(P)
    taken = found.appends if found else ()
    assert list(taken) == [a for a in log[backed_up:] if a in taken]
    batches = [a for a in log[backed_up:] if not a.is_epoch]
    taken_batches = [a for a in taken if not a.is_epoch]
    assert taken_batches == batches[: len(taken_batches)], "none is taken behind one that is missing"
    if any(a in kept for a in batches[len(taken_batches) :]):
        assert found is not None
        assert found.why is not None
    if not lost:
        assert list(taken) == log[backed_up:]


def test_what_is_missing_is_said() -> None:
    log = log_of([2, 2, 2, 2])
    found = newer({P: end_of(log[1])}, [log[2], log[4]])[P]
    assert found.appends == (log[2],)
    assert (found.records, found.left_out) == (2, 1)
    assert found.why == f"what lies between {log[2].address} and {log[4].address} was kept by no node"
