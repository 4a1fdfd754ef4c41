"""`roost why`: what became of a client's messages."""

from __future__ import annotations

import argparse
import json

from roostmq.interface.cli import admin


def parser() -> argparse.ArgumentParser:
    """Options of `roost why`."""
    p = argparse.ArgumentParser(
        prog="roost why",
        description="Say what became of a client's messages: queued, sent, acknowledged, dropped and for which reason, "
        "expired. Asks the admin port of a running broker.",
    )
    p.add_argument("client", metavar="CLIENT", help="client id")
    p.add_argument("-t", "--topic", metavar="T", help="only messages of this topic")
    admin.add_option(p)
    p.add_argument("--json", action="store_true", help="the broker's answer as JSON")
    return p


def main(words: list[str]) -> int:
    """Exit code 0 if the client has a session, 1 if not."""
    options = parser().parse_args(words)
    answer = admin.get(options.admin, "/api/v1/why", client=options.client, topic=options.topic)
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        from roostmq.interface.explain import explain

        print("\n".join(explain(answer, options.topic)))
    return 0 if answer["found"] else 1
