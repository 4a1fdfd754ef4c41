"""The house: imports only go down, no cycles, small files and functions. No build needed."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted((ROOT / "src" / "roostmq").rglob("*.py"))
CRATES = ("engine", "engine-nats", "load", "binding", "bench/null")
RUST = sorted(path for crate in CRATES for path in (ROOT / crate / "src").rglob("*.rs"))

PYTHON_FLOORS = [
    {"errors", "model", "__init__"},
    {"config", "config_toml", "engine"},
    {"policy"},
    {"store", "adapters"},
    {"runtime"},
    {"testing", "interface", "__main__"},
]
RUST_FLOORS = [
    {"limits", "settings", "timers", "channel", "ring", "prints", "fatal"},
    {"topic", "stats"},
    {"codec", "message", "access", "net"},
    {"tree", "retained", "queue", "inflight", "interest", "outbox"},
    {"session", "shared"},
    {"record", "log", "link"},
    {"partition", "connection"},
    {"lane", "port"},
]


def floor_of(name: str, floors: list[set[str]]) -> int:
    found = [i for i, floor in enumerate(floors) if name in floor]
    assert found, f"{name} is on no floor: say in tests/house where it lives"
    return found[0]


def imports(path: Path) -> set[str]:
    """First level below roostmq of what a file imports when it is loaded or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "roostmq":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_imports_go_down(path: Path) -> None:
    name = path.relative_to(ROOT / "src" / "roostmq").parts[0].removesuffix(".py")
    if name in ("__init__", "__main__"):
        return
    for other in imports(path) - {"_engine"}:
        assert floor_of(other, PYTHON_FLOORS) <= floor_of(name, PYTHON_FLOORS), f"{path} imports {other}"


def test_only_the_door_imports_the_native_module() -> None:
    users = [p.name for p in PYTHON if "_engine" in imports(p) or re.search(r"roostmq\._engine", p.read_text())]
    assert users == ["engine.py"]


@pytest.mark.parametrize("path", RUST, ids=lambda p: str(p.relative_to(ROOT)))
def test_rust_imports_go_down(path: Path) -> None:
    if "engine" not in path.parts or path.name == "lib.rs" or path.name.endswith("tests.rs"):
        return
    name = path.relative_to(ROOT / "engine" / "src").parts[0].removesuffix(".rs")
    text = path.read_text().split("#[cfg(test)]\nmod tests")[0]
    for other in set(re.findall(r"crate::([a-z_]+)", text)) - {name}:
        if (name, other) in {("codec", "topic")}:
            continue
        assert floor_of(other, RUST_FLOORS) <= floor_of(name, RUST_FLOORS), f"{path} uses {other}, which is above"


@pytest.mark.parametrize("path", [*PYTHON, *RUST], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_functions_are_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", RUST, ids=lambda p: str(p.relative_to(ROOT)))
def test_rust_functions_are_small(path: Path) -> None:
    if path.name.endswith("tests.rs"):
        return
    lines = path.read_text().splitlines()
    for start, line in enumerate(lines):
        if found := re.match(r"(\s*)(?:pub(?:\([a-z]+\))? )?(?:const )?fn (\w+)", line):
            end = next((i for i in range(start, len(lines)) if lines[i].startswith(found[1] + "}")), start)
            assert end - start < 60, f"{path}: {found[2]}"


def test_the_door_is_narrow() -> None:
    assert sum(len(p.read_text().splitlines()) for p in (ROOT / "binding" / "src").rglob("*.rs")) < 400


def test_the_life_of_a_publish_fits_in_a_head() -> None:
    """At most 9 files and 3,000 lines from socket to socket (ARCHITECTURE.md names them)."""
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## Life of a PUBLISH")[1].split("\n## ")[0]
    files = list(dict.fromkeys(re.findall(r"`(engine/src/[\w/]+\.rs)`", text)))
    assert 3 < len(files) <= 9
    assert sum(len((ROOT / f).read_text().splitlines()) for f in files) <= 3000


def test_no_unsafe_and_no_panics_in_the_engine() -> None:
    for root in ("engine/src/lib.rs", "engine-nats/src/lib.rs", "load/src/lib.rs", "bench/null/src/main.rs"):
        assert "#![forbid(unsafe_code)]" in (ROOT / root).read_text()
    for path in RUST:
        text = path.read_text().split("#[cfg(test)]")[0]
        if not path.name.endswith("tests.rs"):
            assert not re.search(r"\.unwrap\(\)|\.expect\(|\bpanic!|\btodo!|unimplemented!", text), path


def test_nothing_is_left_over() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X{3}|HA" + r"CK)\b")
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".rs", ".md", ".toml") and path.exists():
            assert not words.search(path.read_text()), name
