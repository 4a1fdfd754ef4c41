"""`roost data`: look into, check, export and import a data directory."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from roostmq.errors import ConfigError
from roostmq.interface.cli import admin

EXPORT_S = 3600

What = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """Options of `roost data`."""
    p = argparse.ArgumentParser(
        prog="roost data",
        description="Look into, check, export and import the data directory of a broker. The directory may not be in "
        "use, but for `export --live`. docs/guide/durability.md says more.",
    )
    sub = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    made = {}
    for name, text in (
        ("inspect", "say what is in it, with a digest of each partition"),
        ("verify", "read everything; say what is damaged and what can be done"),
        ("export", "write everything that is kept to a new file"),
        ("import", "fill an empty directory from such a file"),
    ):
        made[name] = sub.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made[name].add_argument("--json", action="store_true", help="print JSON")
        if name != "export":
            made[name].add_argument("folder", metavar="DIR")
    made["import"].add_argument("file", metavar="FILE")
    export = made["export"]
    export.usage = "roost data export [--json] DIR FILE\n       roost data export [--json] --live [--admin URL] FILE"
    export.add_argument(
        "places", nargs="+", metavar="DIR FILE", help="the data directory (not needed with --live), the file"
    )
    export.add_argument("--live", action="store_true", help="ask the running broker, which goes on serving")
    admin.add_option(export)
    return p


def main(words: list[str]) -> int:
    """Exit code 0 when all is well; 1 when `verify` has found damage."""
    options = parser().parse_args(words)
    actions: dict[str, What] = {"inspect": inspect, "verify": verify, "export": export, "import": import_}
    return actions[options.what](options)


def inspect(options: argparse.Namespace) -> int:
    """`roost data inspect DIR`."""
    from roostmq import engine

    folder = existing(options.folder)
    found = engine.data_inspect(folder)
    show(options, found, lambda: inspected(folder, found))
    return 0


def verify(options: argparse.Namespace) -> int:
    """`roost data verify DIR`."""
    from roostmq import engine

    folder = existing(options.folder)
    found = engine.data_verify(folder)
    show(options, found, lambda: verified(folder, found))
    return 0 if found["ok"] else 1


def export(options: argparse.Namespace) -> int:
    """`roost data export DIR FILE`, or `--live FILE`."""
    *folders, file = map(os.path.abspath, options.places)
    if len(folders) > 1 or (not folders and not options.live):
        raise ConfigError("name DIR and FILE: `roost data export DIR FILE`, or `roost data export --live FILE`")
    if not options.live and os.path.lexists(file):
        raise ConfigError("is there already; an export does not replace a file: name another", file=file)
    if not options.live:
        from roostmq import engine

        found = engine.data_export(existing(folders[0]), file)
    else:
        if folders:
            _same(options.admin, folders[0])
        found = admin.post(options.admin, "/api/v1/export", EXPORT_S, file=file)
    show(options, found, lambda: [f"exported {numbers(found)} to {file}"])
    return 0


def _same(base: str, folder: str) -> None:
    """With `--live` a directory is not needed; one that is named must be the broker's."""
    used = admin.get(base, "/api/v1/info").get("data_dir")
    if used is None or os.path.realpath(used) != os.path.realpath(folder):
        raise ConfigError(f"the broker at {base} keeps its data in {used or 'memory'}, not in {folder}")


def import_(options: argparse.Namespace) -> int:
    """`roost data import DIR FILE`."""
    from roostmq import engine

    folder, file = map(os.path.abspath, (options.folder, options.file))
    if not os.path.isfile(file):
        raise ConfigError("there is no such file", file=file)
    found = engine.data_import(folder, file)
    show(options, found, lambda: [f"imported {numbers(found)} into {folder}"])
    return 0


def existing(place: str) -> str:
    """The absolute path of a directory that is there; raises ConfigError otherwise."""
    folder = os.path.abspath(place)
    if not os.path.isdir(folder):
        raise ConfigError(
            "there is no such directory; a broker prints its own as `data DIR` when it starts", file=folder
        )
    return folder


def show(options: argparse.Namespace, found: dict[str, Any], lines: Callable[[], list[str]]) -> None:
    """JSON, or lines for people."""
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines()))


def numbers(found: dict[str, Any]) -> str:
    """`3 sessions, ...`."""
    kinds = ("sessions", "subscriptions", "messages", "retained")
    return ", ".join(f"{found[kind]:,} {kind}" for kind in kinds if kind in found)


def inspected(folder: str, found: dict[str, Any]) -> list[str]:
    """`inspect` for people."""
    from roostmq.interface.explain import columns, size

    checkpoint = found["checkpoint"]
    rows: list[tuple[str, object]] = [
        ("version", found["version"]),
        ("started", f"{found['incarnation']:,} times"),
        ("partitions", f"{found['partitions']:,}"),
        ("log", f"{size(found['log_bytes'])} in {len(found['segments']):,} segments"),
        ("checkpoint", "none yet" if checkpoint is None else _compact(checkpoint)),
        ("sessions", f"{found['sessions']:,}"),
        ("subscriptions", f"{found['subscriptions']:,}"),
        ("shared groups", f"{found['groups']:,}"),
        ("queued", f"{found['queued']:,} messages, {size(found['queued_bytes'])}"),
        ("retained", f"{found['retained']:,}"),
    ]
    lines = [folder, *columns(rows), "", "segments:"]
    lines += (
        columns([(s["number"], size(s["bytes"]), s["state"]) for s in found["segments"]]) if found["segments"] else []
    )
    digests = [f"{int(number):5}: {digest}" for number, digest in found["digests"].items()]
    lines += ["", "digests:", *("  ".join(digests[i : i + 4]) for i in range(0, len(digests), 4))]
    return lines + damage(found)


def verified(folder: str, found: dict[str, Any]) -> list[str]:
    """`verify` for people."""
    from roostmq.interface.explain import size

    read = f"{found['checked_records']:,} records, {size(found['checked_bytes'])} read"
    lines = [f"{folder}: {'good' if found['ok'] else 'damaged'}, {read}", *damage(found)]
    choices = found["choices"]
    return (
        [*lines, "", "what can be done:", *(f"  {n}. {text}" for n, text in enumerate(choices, 1))]
        if choices
        else lines
    )


def damage(found: dict[str, Any]) -> list[str]:
    """What is damaged, and the torn tail."""
    lines = []
    if found["torn"] is not None:
        torn = found["torn"]
        lines.append(
            f"torn tail at {torn['where']}: {torn['bytes']:,} bytes that were never acknowledged; cut off at start"
        )
    if found["damaged"]:
        lines += [f"damaged: {d['where']}: {d['what']}" for d in found["damaged"]]
    return ["", *lines] if lines else []


def _compact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value).strip("{}").replace('"', "")
