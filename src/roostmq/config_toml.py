"""Configuration as TOML text and environment variables, and the descriptions made from the tables of `config`.

An environment variable `ROOST_SECTION__OPTION` overrides the file: `ROOST_LISTENERS__TCP__PORT=1884`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from roostmq.config import Access, Config, Listener, Reader, nearest
from roostmq.errors import ConfigError

PREFIX = "ROOST_"
INTERNAL = ("ROOST_REQUIRE_NATS", "ROOST_TEST_")


def read_toml(text: str, file: str, env: Mapping[str, str]) -> Config:
    """Read a TOML configuration; ConfigError names file, line, option, bound and the nearest valid name."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"not TOML: {error}", file=file, line=int(found[1]) if found else None) from None
    lines = dict(_lines(text))
    from_env = _overlay(raw, env)

    def where(name: str) -> tuple[str | None, int | None]:
        while name and name not in lines and name not in from_env:
            name = name.rpartition(".")[0]
        if name in from_env:
            return f"environment variable {from_env[name]}", None
        return file, lines.get(name)

    return Reader(where).read(raw)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Dotted option name and line of each key; enough of TOML for error messages."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            section = re.sub(r"[\"'\s]", "", found[1]) + "."
            yield section[:-1], number
        elif found := re.match(r"\s*([\"'])(.+?)\1\s*=", line):
            yield section + found[2], number
        elif found := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
            yield section + re.sub(r"[\"'\s]", "", found[1]), number


def _overlay(raw: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Put environment variables over the table; returns which option came from which variable."""
    names: dict[str, str] = {}
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable.startswith(INTERNAL) or "CONFIG" in variable:
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        if path[0] not in {f.name for f in dataclasses.fields(Config)}:
            continue
        table = raw
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = _parse(value)
        names[".".join(path)] = variable
    return names


def _parse(value: str) -> Any:
    """A text as TOML would read it, or the text itself."""
    try:
        return tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value


def to_toml(config: Config) -> str:
    """The configuration as TOML: only what differs from the defaults. Reading it gives the same configuration."""
    out: list[str] = []
    _write(out, config, Config(), "")
    return "\n".join(out).strip() + "\n"


def _write(out: list[str], value: Any, default: Any, name: str) -> None:
    tables: list[tuple[str, Any, Any]] = []
    body: list[str] = []
    for f in dataclasses.fields(value):
        mine, usual = getattr(value, f.name), getattr(default, f.name)
        if dataclasses.is_dataclass(mine):
            tables.append((f.name, mine, usual if usual is not None else type(typing.cast(Any, mine))()))
        elif isinstance(mine, dict) and f.name in ("listeners", "access"):
            base: Any = Listener() if f.name == "listeners" else Access()
            tables.extend((f"{f.name}.{key}", item, base) for key, item in mine.items())
        elif mine != usual:
            body.append(f"{f.name} = {_literal(mine)}")
    named = "." in name or any("." in t[0] for t in tables)
    if name and (body or named or name.endswith(".tls")):
        out.append(f"\n[{name}]")
    out.extend(body)
    for key, item, usual in tables:
        _write(out, item, usual, f"{name}.{key}" if name else key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    special = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(special.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in value) + '"'


def json_schema() -> dict[str, Any]:
    """JSON Schema of the TOML form."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "roost.toml", **_schema(Config)}


def _schema(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    properties = {}
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else None
        entry: dict[str, Any] = {"description": f.metadata.get("text", ""), **_type_schema(hints[f.name])}
        pairs = entry.get("additionalProperties")
        if isinstance(default, (str, int, bool)):
            entry["default"] = default
        if f.metadata.get("low") is not None:
            entry["minimum"] = f.metadata["low"]
        if f.metadata.get("high") is not None:
            entry["maximum"] = f.metadata["high"]
        if f.metadata.get("choices"):
            (pairs if isinstance(pairs, dict) else entry)["enum"] = list(f.metadata["choices"])
        properties[f.name] = entry
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _type_schema(hint: Any) -> dict[str, Any]:
    args = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return _type_schema(next(a for a in args if a is not type(None)))
    if dataclasses.is_dataclass(hint):
        return _schema(typing.cast(type, hint))
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _type_schema(args[1])}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": {"type": "string"}}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[hint]}


def reference() -> str:
    """The reference page of all options, in Markdown."""
    out = [
        "# Configuration",
        "",
        "Made from `src/roostmq/config.py`; every option is also an environment variable,",
        "",
    ]
    out += ["`ROOST_SECTION__OPTION`, for example `ROOST_LISTENERS__TCP__PORT=1884`.", ""]
    _reference(out, "(top)", Config)
    return "\n".join(out) + "\n"


def _reference(out: list[str], title: str, cls: type) -> None:
    out += [f"## {title}", "", "| option | default | bounds | what it does |", "|---|---|---|---|"]
    hints = typing.get_type_hints(cls)
    below: list[tuple[str, type]] = []
    for f in dataclasses.fields(cls):
        inner = [a for a in (hints[f.name], *typing.get_args(hints[f.name])) if dataclasses.is_dataclass(a)]
        base = "" if title == "(top)" else f"{title.strip('[]')}."
        if inner:
            name = f"{base}{f.name}.NAME" if typing.get_origin(hints[f.name]) is dict else f"{base}{f.name}"
            below.append((f"[{name}]", typing.cast(type, inner[0])))
            continue
        meta = f.metadata
        bounds = ", ".join(meta.get("choices") or ()) or f"{meta.get('low', '')} to {meta.get('high') or ''}"
        bounds = "" if bounds == "None to " else bounds.replace("None", "")
        default = "" if f.default in (None, dataclasses.MISSING) else str(f.default)
        out.append(f"| `{f.name}` | {default} | {bounds} | {meta.get('text', '')} |")
    out.append("")
    for name, inner_cls in below:
        _reference(out, name, inner_cls)


__all__ = ["json_schema", "nearest", "read_toml", "reference", "to_toml"]
