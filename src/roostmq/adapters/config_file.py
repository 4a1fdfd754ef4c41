"""A configuration from wherever it is: roost.toml, a mosquitto.conf, the environment, the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from roostmq.adapters.mosquitto_conf import read_mosquitto_conf
from roostmq.config import Access, Admin, Config, Listener
from roostmq.config_toml import read_toml
from roostmq.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Overrides:
    """What the command line says over the file."""

    host: str | None = None
    port: int | None = None
    lanes: int | None = None
    admin_port: int | None = None
    no_admin: bool = False
    data: str | None = None
    memory: bool = False
    ignore_unsupported: tuple[str, ...] = ()


def load(
    path: Path | None, env: Mapping[str, str] | None = None, overrides: Overrides = Overrides()
) -> tuple[Config, list[str]]:
    """Read the configuration; returns it with warnings. Raises ConfigError with file, line and option."""
    env = os.environ if env is None else env
    config, warnings = read_file(path, env, overrides.ignore_unsupported)
    return override(config, overrides), warnings


def read_file(path: Path | None, env: Mapping[str, str], ignore: Collection[str] = ()) -> tuple[Config, list[str]]:
    """A file by its kind: `*.conf` is mosquitto's form, everything else TOML."""
    if path is None:
        return read_toml("", "(no file)", env), []
    if path.suffix == ".conf":
        return read_mosquitto_conf(path, ignore)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", file=str(path)) from None
    return read_toml(text, str(path), env), []


def override(config: Config, o: Overrides) -> Config:
    """The configuration with what the command line says."""
    if o.host is not None or o.port is not None:
        names = list(config.listeners) or ["tcp"]
        first = config.listeners.get(names[0], Listener())
        changed = dataclasses.replace(
            first, host=first.host if o.host is None else o.host, port=first.port if o.port is None else o.port
        )
        config = dataclasses.replace(config, listeners={**config.listeners, names[0]: changed})
    if o.lanes is not None:
        config = dataclasses.replace(config, lanes=o.lanes)
    if o.no_admin:
        config = dataclasses.replace(config, admin=dataclasses.replace(config.admin, enabled=False))
    if o.data is not None or o.memory:
        config = dataclasses.replace(
            config, durability=dataclasses.replace(config.durability, data_dir=o.data, memory=o.memory)
        )
    if o.admin_port is not None:
        config = dataclasses.replace(config, admin=Admin(True, config.admin.host, o.admin_port))
    return config


def place(config: Config, env: Mapping[str, str] | None = None) -> Config:
    """The configuration with an absolute data directory, unless everything stays in memory.

    Where none is configured: systemd's state directory (`STATE_DIRECTORY`), else the user's data directory.
    """
    env = os.environ if env is None else env
    found = config.durability.data_dir
    if config.durability.memory:
        return config
    if found is None and env.get("STATE_DIRECTORY"):
        found = env["STATE_DIRECTORY"].split(":")[0]
    if found is None:
        import platformdirs

        found = platformdirs.user_data_dir("roostmq")
    whole = os.path.abspath(os.path.expanduser(found))
    return dataclasses.replace(config, durability=dataclasses.replace(config.durability, data_dir=whole))


def problems(config: Config) -> list[str]:
    """What would go wrong at start: files that are not there or cannot be read."""
    found = []
    for name, listener in config.listeners.items():
        tls = listener.tls
        files = {} if tls is None else {"cert_file": tls.cert_file, "key_file": tls.key_file, "ca_file": tls.ca_file}
        files |= {"crl_file": tls.crl_file} if tls is not None else {}
        found += [_missing(f"listeners.{name}.tls.{option}", file) for option, file in files.items()]
    for name, rules in (config.access or {"default": Access()}).items():
        files = {"password_file": rules.password_file, "acl_file": rules.acl_file}
        files |= {"jwt.key_file": rules.jwt.key_file} if rules.jwt else {}
        found += [_missing(f"access.{name}.{option}", file) for option, file in files.items()]
    found.append(_no_folder("durability.data_dir", config.durability.data_dir))
    return [text for text in found if text]


def _missing(option: str, file: str | None) -> str | None:
    if not file or os.access(file, os.R_OK):
        return None
    return f"{option}: {file} is not there or cannot be read"


def _no_folder(option: str, path: str | None) -> str | None:
    if path is None or os.path.isdir(path) or not os.path.lexists(path):
        return None
    return f"{option}: {path} is there and not a directory"
