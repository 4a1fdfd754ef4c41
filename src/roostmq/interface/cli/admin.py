"""The admin port of a running broker, as the commands see it. Plain HTTP, JSON in and out."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from roostmq.errors import RoostError, TimedOut, UnavailableError

DEFAULT = "http://127.0.0.1:18083"


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option `--admin URL`."""
    parser.add_argument("--admin", default=DEFAULT, metavar="URL", help=f"admin port of the broker; default {DEFAULT}")


def get(base: str, path: str, at_most_s: float = 15, **query: str | None) -> dict[str, Any]:
    """Ask the broker. Raises RoostError in one line if there is no answer or a refusal, UnavailableError if that is for
    now (NATS is away), TimedOut if it is late.
    """
    words = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
    return _open(base, f"{path}?{words}" if words else path, None, at_most_s)


def post(base: str, path: str, at_most_s: float, **fields: object) -> dict[str, Any]:
    """Tell the broker to do something; errors as in `get`."""
    return _open(base, path, json.dumps(fields).encode(), at_most_s)


def refuse_if_paused(base: str, what: str) -> None:
    """Who waits for moves would wait for ever. Raises RoostError."""
    if get(base, "/api/v1/cluster/moves")["paused"]:
        raise RoostError(f"{what}: moves are paused; `roost cluster resume`, or `apply`, lets them go on")


def _open(base: str, path: str, body: bytes | None, at_most_s: float) -> dict[str, Any]:
    if not base.startswith(("http://", "https://")):
        raise RoostError(f"--admin: `{base}` is not a URL such as {DEFAULT}")
    try:
        request = urllib.request.Request(base.rstrip("/") + path, body, {"Content-Type": "application/json"})
        # The admin port is reached directly: a proxy of the environment is for the web.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=at_most_s) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        why = UnavailableError if error.code == 503 else RoostError
        raise why(f"the broker at {base} refuses: {_text(error)}") from None
    except TimeoutError:
        raise TimedOut(f"the broker at {base} has not answered within {at_most_s:.0f} s") from None
    except urllib.error.URLError as error:
        text = getattr(error.reason, "strerror", None) or error.reason
        raise RoostError(
            f"no broker answers at {base} ({text}); start it, or name its admin port: --admin URL"
        ) from None
    except (OSError, ValueError) as error:
        raise RoostError(f"what answers at {base} is not the admin port of a broker: {error}") from None
    return found


def _text(error: urllib.error.HTTPError) -> str:
    with error:
        try:
            told = json.load(error)
            return str(told["error"] if "error" in told else told["detail"])
        except (ValueError, KeyError, TypeError, OSError):
            return f"{error.code} {error.reason}"
