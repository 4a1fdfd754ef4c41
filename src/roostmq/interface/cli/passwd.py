"""`roost passwd`: users of a password file."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import tempfile
from pathlib import Path

from roostmq.engine import hash_password
from roostmq.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """Options of `roost passwd`."""
    p = argparse.ArgumentParser(
        prog="roost passwd",
        description="Add, change or delete a user of a password file. Hashes are argon2id; those of mosquitto stay.",
    )
    p.add_argument("file", type=Path, metavar="FILE", help="password file; made if it is not there")
    p.add_argument("user", metavar="USER")
    p.add_argument("-b", "--batch", metavar="PASSWORD", help="the password, instead of asking for it")
    p.add_argument("-D", "--delete", action="store_true", help="delete the user")
    p.add_argument("-c", "--create", action="store_true", help="begin a new file, even if one is there")
    return p


def main(words: list[str]) -> int:
    """Change the file atomically, mode 0600."""
    options = parser().parse_args(words)
    if ":" in options.user or "\n" in options.user or not options.user:
        raise ConfigError(f"user `{options.user}`: a name without `:` is needed")
    path: Path = options.file
    lines = [] if options.create or not path.exists() else path.read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] != options.user]
    if options.delete:
        if len(kept) == len(lines):
            raise ConfigError(f"there is no user `{options.user}`", file=str(path))
    else:
        kept.append(f"{options.user}:{hash_password(_password(options.batch))}")
    replace(path, "".join(f"{line}\n" for line in kept))
    return 0


def _password(given: str | None) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigError("the two passwords differ; nothing was changed")
    return first


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from None
