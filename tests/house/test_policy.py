"""`policy/` is pure: it imports nothing that could wait, look or roll dice, and asks nothing of the process it is in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POLICY = sorted((ROOT / "src" / "roostmq" / "policy").rglob("*.py"))

PURE = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "typing",
}
OURS = {"roostmq.model", "roostmq.errors"}
IMPURE_NAMES = {"hash", "id", "open", "print", "input", "exec", "eval", "__import__", "globals", "breakpoint"}
"""Built in, and different from process to process, or not of this world."""


def faults(text: str) -> list[str]:
    """What is not pure in a source."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name not in PURE | OURS]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            if node.level or (module not in PURE | OURS and not module.startswith("roostmq.policy")):
                found.append(module)
        elif isinstance(node, ast.Name) and node.id in IMPURE_NAMES and isinstance(node.ctx, ast.Load):
            found.append(node.id)
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append("async")
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.append("global")
    return found


@pytest.mark.parametrize("path", POLICY, ids=lambda p: p.name)
def test_policies_are_pure(path: Path) -> None:
    assert not faults(path.read_text()), f"{path}: give it as an argument instead"


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "import random",
        "from os import path",
        "import asyncio",
        "import socket",
        "from datetime import datetime",
        "from roostmq import engine",
        "from roostmq.engine import hash_ids",
        "from roostmq.runtime import node",
        "from . import ring",
        "x = hash('a')",
        "def f():\n    import time",
        "async def f(): ...",
        "open('x')",
    ],
)
def test_the_guard_bites(text: str) -> None:
    assert faults(text)


def test_policies_do_not_import_in_a_circle() -> None:
    needs: dict[str, set[str]] = {}
    for path in POLICY:
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules = {node.module or "" for node in froms}
        modules |= {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        needs[path.stem] = {m.removeprefix("roostmq.policy.") for m in modules} & {p.stem for p in POLICY}
    while needs:
        free = {name for name, wants in needs.items() if not wants & needs.keys()}
        assert free, f"a circle among {sorted(needs)}"
        needs = {name: wants for name, wants in needs.items() if name not in free}
