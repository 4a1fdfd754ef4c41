"""Log lines: human on a terminal, JSON otherwise; never through the root logger."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from roostmq.config import Log


def make_logger(config: Log, stream: TextIO | None = None) -> Any:
    """A logger as configured; it writes to standard error or to the configured file."""
    out = stream or (open(config.file, "a", buffering=1) if config.file else sys.stderr)  # noqa: SIM115
    human = config.format == "human" or (config.format == "auto" and out.isatty())
    last: Any = structlog.dev.ConsoleRenderer() if human else structlog.processors.JSONRenderer()
    level = logging.getLevelNamesMapping()[config.level.upper()]
    return structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
