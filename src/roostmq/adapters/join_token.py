"""The join token: what a node must know of its cluster before it can reach it.

A secret: it carries the hash key, and what links between nodes are encrypted with. Who has it is a node of the cluster.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass

from roostmq.errors import ConfigError

PREFIX = "roost1-"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a token says."""

    cluster: str
    partitions: int
    key: str
    """The hash key, 32 hexadecimal digits."""
    secret: str = ""
    """What the nodes' certificates are made with, 64 hexadecimal digits; empty in tokens of the time before that."""

    def pack(self) -> str:
        """As text for a configuration."""
        body = json.dumps([self.cluster, self.partitions, self.key, self.secret], separators=(",", ":")).encode()
        checked = zlib.crc32(body).to_bytes(4, "big") + body
        return PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")

    @property
    def key_pair(self) -> tuple[int, int]:
        """The key as two numbers of 64 bit."""
        return int(self.key[:16], 16), int(self.key[16:], 16)


def read_token(text: str) -> JoinToken:
    """Raises ConfigError for what is no token, or one that was cut off."""
    wrong = ConfigError("cluster.token: is no join token, or is cut off; copy it again", option="cluster.token")
    body = text.strip().removeprefix(PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        raise wrong from None
    if not text.strip().startswith(PREFIX) or zlib.crc32(raw[4:]) != int.from_bytes(raw[:4], "big"):
        raise wrong
    cluster, partitions, key, *secret = json.loads(raw[4:])
    return JoinToken(cluster, partitions, key, *secret)
