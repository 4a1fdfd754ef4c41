"""A checker of the export file, written from docs/formats/export.md and from nothing else."""

import base64
import json

BODY = {"topic", "payload", "properties", "published_qos", "published_retain", "publisher", "origin", "expiry_left_ms"}
HEAD = {"roostmq_export", "roostmq", "partitions", "key", "incarnation", "at_ms"}
FIELDS = {
    "session": {"uid", "client_id", "expiry_s", "ends_left_ms", "next_index", "last_n", "will", "will_left_ms"},
    "subscription": {"uid", "filter", "qos", "no_local", "retain_as_published", "identifier"},
    "held": {"uid", "packet_identifier", "n"},
    "group": {"uid", "name", "next_index", "last_n"},
    "message": {"uid", "index", "stage", "qos", "retain", "identifiers", "group", "given"} | BODY,
    "retained": BODY,
    "origin": {"partition", "uid", "floor", "taken"},
    "end": {"sessions", "subscriptions", "messages", "retained", "lines"},
}


def check(text):
    """The lines by kind; fails where the file is not as the document says."""
    assert text.endswith("\n")
    head, *lines = map(json.loads, text.splitlines())
    assert head.keys() == HEAD and head["roostmq_export"] == 1
    assert len(bytes.fromhex(head["key"])) == 16
    found = {kind: [] for kind in FIELDS}
    for line in lines:
        kind = line.pop("kind")
        assert line.keys() == FIELDS[kind], f"{kind}: {line.keys() ^ FIELDS[kind]}"
        found[kind].append(line)
    (end,) = found["end"]
    counts = {f"{kind}s": len(found[kind]) for kind in ("session", "subscription", "message")}
    assert end == {**counts, "retained": len(found["retained"]), "lines": len(lines) + 1}
    owners = {line["uid"]: line for kind in ("session", "group") for line in found[kind]}
    assert len(owners) == len(found["session"]) + len(found["group"])
    for uid in owners:
        partition, incarnation, _ = map(int, uid.split("."))
        assert partition < head["partitions"] and incarnation <= head["incarnation"]
    last = {}
    for line in found["message"]:
        assert last.get(line["uid"], -1) < line["index"] < owners[line["uid"]]["next_index"]
        last[line["uid"]] = line["index"]
        assert line["stage"] in ("waiting", "sent", "received")
        assert line["group"] is None or line["group"].keys() == {"uid", "index", "n"}
        assert line["given"] is None or line["given"].keys() == {"uid", "n"}
        assert all(line[name] is None or line[name]["uid"] in owners for name in ("group", "given"))
    for line in found["message"] + found["retained"]:
        base64.b64decode(line["payload"], validate=True)
        base64.b64decode(line["properties"], validate=True)
    for line in found["held"] + found["subscription"]:
        assert line["uid"] in owners
    return found
