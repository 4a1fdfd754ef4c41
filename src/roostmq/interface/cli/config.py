"""`roost config`: check, convert, describe."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from roostmq.adapters.config_file import problems, read_file
from roostmq.config_toml import json_schema, reference, to_toml


def parser() -> argparse.ArgumentParser:
    """Options of `roost config`."""
    p = argparse.ArgumentParser(prog="roost config", description="Check, convert or describe a configuration.")
    sub = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    check = sub.add_parser("check", help="read a file and say what is wrong with it")
    check.add_argument("file", type=Path, metavar="FILE")
    convert = sub.add_parser("convert", help="write a mosquitto.conf as roost.toml to standard output")
    convert.add_argument("file", type=Path, metavar="FILE")
    for command in (check, convert):
        command.add_argument("--ignore-unsupported", action="append", default=[], metavar="NAME")
    sub.add_parser("schema", help="print the JSON Schema of roost.toml")
    sub.add_parser("reference", help="print all options as Markdown")
    return p


def main(words: list[str]) -> int:
    """Exit code 0 when the configuration can be used."""
    options = parser().parse_args(words)
    if options.what == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.what == "reference":
        print(reference(), end="")
        return 0
    config, warnings = read_file(options.file, os.environ, options.ignore_unsupported)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    config.engine_settings()
    if options.what == "convert":
        print(to_toml(config), end="")
        return 0
    found = problems(config)
    for text in found:
        print(f"roost: {options.file}: {text}", file=sys.stderr)
    if not found:
        print(f"{options.file}: good, {len(config.listeners) or 1} listener(s)")
    return 1 if found else 0
