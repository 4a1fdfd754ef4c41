"""The power cuts themselves: what counts as synced, read from what strace writes."""

from __future__ import annotations

from cluster.cut import ends

TRACE = """\
101 pwrite64(9</d/msgs/1.blk>, ""..., 39, 0) = 39
101 fsync(9</d/msgs/1.blk>) = 0
102 pwrite64(9</d/msgs/1.blk>, ""..., 40, 39) = 40
101 pwrite64(8</d/msgs/2.blk>, ""..., 10, 500 <unfinished ...>
103 fsync(8</d/msgs/2.blk> <unfinished ...>
101 <... pwrite64 resumed>) = 10
102 pwrite64(8</d/msgs/2.blk>, ""..., 7, 510) = 7
103 <... fsync resumed>) = 0
104 write(7<anon_inode:[eventfd]>, ""..., 8) = 8
"""


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    assert ends(TRACE.splitlines()) == {"/d/msgs/1.blk": (39, 79), "/d/msgs/2.blk": (510, 517)}
