"""`roost lb config haproxy`: a load balancer that sends each client to the node that owns its session.

HAProxy reads the client id of the CONNECT, hashes it with the cluster's key (SipHash-2-4, in Lua) and knows the owner
of each partition as it was when this was written. A stale map costs nothing but a hop: any node serves any client.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from roostmq.adapters.join_token import JoinToken, read_token
from roostmq.errors import ConfigError
from roostmq.interface.cli import admin

LUA = """-- Client id to the node that owns its session, written by `roost lb config haproxy`.
-- It holds the cluster's hash key: keep it secret.
local key0, key1, roots, bits = 0x{key0:016x}, 0x{key1:016x}, {roots}, {bits}
local owners = {{ {owners} }}

-- The top bits say which partition of those at the beginning; each was cut in two as often as there are numbers for it.
local function partition_of(point)
  local found, step = bits == 0 and 0 or point >> (64 - bits), roots
  local rest = point << bits
  while found + step < #owners do
    found, rest, step = found + step * (rest >> 63), rest << 1, step * 2
  end
  return found
end

local function rotl(x, b) return (x << b) | (x >> (64 - b)) end

local function siphash(text)
  local v0, v1 = key0 ~ 0x736f6d6570736575, key1 ~ 0x646f72616e646f6d
  local v2, v3 = key0 ~ 0x6c7967656e657261, key1 ~ 0x7465646279746573
  local function round()
    v0 = v0 + v1; v1 = rotl(v1, 13) ~ v0; v0 = rotl(v0, 32)
    v2 = v2 + v3; v3 = rotl(v3, 16) ~ v2
    v0 = v0 + v3; v3 = rotl(v3, 21) ~ v0
    v2 = v2 + v1; v1 = rotl(v1, 17) ~ v2; v2 = rotl(v2, 32)
  end
  local whole = #text - #text % 8
  for at = 1, whole, 8 do
    local m = string.unpack("<i8", text, at)
    v3 = v3 ~ m; round(); round(); v0 = v0 ~ m
  end
  local last = (#text & 0xff) << 56
  for i = whole + 1, #text do
    last = last | (string.byte(text, i) << (8 * (i - whole - 1)))
  end
  v3 = v3 ~ last; round(); round(); v0 = v0 ~ last
  v2 = v2 ~ 0xff
  round(); round(); round(); round()
  return v0 ~ v1 ~ v2 ~ v3
end

core.register_converters("roost_node", function(client_id)
  if client_id == nil or client_id == "" then return "" end
  return owners[partition_of(siphash(client_id)) + 1] or ""
end)
"""

CONFIG = """# Written by `roost lb config haproxy`; {lua} goes with it.
global
  lua-load {lua}

defaults
  mode tcp
  timeout connect 5s
  # longer than the keep alive of any client: nodes end what is silent
  timeout client 24h
  timeout server 24h

frontend mqtt
  bind {bind}
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req.payload(0,0),mqtt_is_valid }}
  tcp-request content reject if WAIT_END
  default_backend roost

backend roost
  balance leastconn
  option httpchk GET /readyz
  http-check expect status 200
  tcp-request inspect-delay 10s
  tcp-request content set-var(txn.node) req.payload(0,0),mqtt_field_value(connect,client_identifier),lua.roost_node
{rules}
{servers}
"""


def parser() -> argparse.ArgumentParser:
    """Options of `roost lb`."""
    p = argparse.ArgumentParser(prog="roost lb", description="Configurations of load balancers in front of a cluster.")
    sub = p.add_subparsers(dest="what", required=True, metavar="COMMAND")
    config = sub.add_parser("config", help="write a configuration from what one node knows now")
    config.add_argument("kind", choices=("haproxy",), help="the load balancer")
    config.add_argument(
        "--token-file", type=Path, required=True, metavar="FILE", help="the join token: the hash key is in it"
    )
    config.add_argument("--bind", default=":1883", metavar="ADDRESS", help="where clients connect; default :1883")
    config.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="write haproxy.cfg and roost.lua here")
    config.add_argument("--proxy-protocol", action="store_true", help="nodes expect PROXY v2")
    admin.add_option(config)
    return p


def main(words: list[str]) -> int:
    """Write both files."""
    o = parser().parse_args(words)
    told = admin.get(o.admin, "/api/v1/cluster")
    token = read_token(o.token_file.read_text())
    o.out.mkdir(parents=True, exist_ok=True)
    lua = (o.out / "roost.lua").absolute()
    lua.touch(mode=0o600)
    os.chmod(lua, 0o600)
    lua.write_text(script(told, token))
    config = o.out / "haproxy.cfg"
    config.write_text(configuration(told, str(lua), o.bind, proxy=o.proxy_protocol))
    print(f"{config} and {lua}: {len(told['members'])} nodes, table {told['table_version']}")
    print(f"try: haproxy -c -f {config}")
    return 0


def script(told: dict[str, Any], token: JoinToken) -> str:
    """The Lua file: hash, key and owners."""
    owners = ", ".join(f'"{p["owner"] or ""}"' for p in told["partitions"])
    key0, key1 = token.key_pair
    bits = token.partitions.bit_length() - 1
    return LUA.format(key0=key0, key1=key1, roots=token.partitions, bits=bits, owners=owners)


def configuration(told: dict[str, Any], lua: str, bind: str, *, proxy: bool) -> str:
    """haproxy.cfg. Raises ConfigError if a node has no admin port: nothing else says whether it is ready."""
    rules, servers = [], []
    for m in told["members"]:
        if not m["admin"]:
            raise ConfigError(f"{m['node']} has no admin port: HAProxy asks /readyz there")
        port = m["admin"].rpartition(":")[2]
        sent = " send-proxy-v2" if proxy else ""
        rules.append(f"  use-server {m['node']} if {{ var(txn.node) -m str {m['node']} }}")
        servers.append(f"  server {m['node']} {m['mqtt']} check port {port} inter 1s fall 2 rise 1{sent}")
    return CONFIG.format(lua=lua, bind=bind, rules="\n".join(rules), servers="\n".join(servers))
