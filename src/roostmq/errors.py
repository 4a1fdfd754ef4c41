"""What can go wrong, and whose fault it is.

RoostError
├── ConfigError      the operator's: a file, an option, a value; never worth a retry as it is
│   └── UnsupportedOption    an option that RoostMQ does not have and may not ignore
├── EngineError      the engine refuses: an address in use, a certificate that cannot be read
├── PlacementError   partitions cannot be placed so: no node left, a weight that is none, a plan of an older table
├── StoreError       what is agreed on cannot be read or changed
│   ├── StaleError           somebody else has changed it first: read it again and decide anew
│   ├── UnavailableError     nobody answers; whether a change was made is not known: read it again later
│   └── UnsuitableError      the operator's: NATS must not be used like this; never worth a retry as it is
├── ClosedError      the broker is stopped already
└── TimedOut         a wait of the testing tools ended without what was waited for
"""

from __future__ import annotations


class RoostError(Exception):
    """Base of all errors of RoostMQ; its text says what was wrong, where, and what to do."""


class ConfigError(RoostError):
    """A configuration that cannot be used.

    `file` and `line` are set where the option stands in a file.
    """

    def __init__(self, text: str, *, file: str | None = None, line: int | None = None, option: str | None = None):
        self.text, self.file, self.line, self.option = text, file, line, option
        where = "" if file is None else f"{file}, line {line}: " if line else f"{file}: "
        super().__init__(f"{where}{text}")


class UnsupportedOption(ConfigError):
    """An option that grants, restricts or routes, and that this broker does not have."""


class EngineError(RoostError):
    """The engine refuses; the text comes from it."""


class PlacementError(RoostError):
    """Partitions cannot be placed in this way; make the plan anew from the present table, or change what it says."""


class StoreError(RoostError):
    """What a cluster has agreed on cannot be read or changed."""


class StaleError(StoreError):
    """Compare-and-set: somebody else was first. Read again and decide anew."""


class UnavailableError(StoreError):
    """Nobody answers. A change that was under way may have been made or not: only reading it again tells."""


class UnsuitableError(StoreError):
    """NATS is there and must not be used like this; the text says what is wrong and what to do."""


class ClosedError(RoostError):
    """The broker is stopped."""


class TimedOut(RoostError, TimeoutError):
    """Nothing came in time."""
