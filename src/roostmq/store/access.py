"""How NATS is reached: addresses, who we are, TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NatsAccess:
    """Addresses and credentials; at most one kind of credentials."""

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey_file: str | None = None
    credentials_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def options(self) -> dict[str, Any]:
        """For `nats.connect`."""
        found: dict[str, Any] = {}
        if self.user is not None:
            found |= {"user": self.user, "password": self.password or ""}
        elif self.token is not None:
            found["token"] = self.token
        elif self.nkey_file is not None:
            found["nkeys_seed"] = self.nkey_file
        elif self.credentials_file is not None:
            found["user_credentials"] = self.credentials_file
        if self.ca_file or self.cert_file or any(url.startswith("tls://") for url in self.urls):
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
            found["tls"] = context
        return found

    def engine_settings(self) -> dict[str, Any]:
        """For the engine's own connection (`NatsSettings`)."""
        found: dict[str, Any] = {"urls": list(self.urls), "user": self.user, "password": self.password}
        found |= {"token": self.token, "credentials": self.credentials_file, "authority": self.ca_file}
        found |= {"certificate": self.cert_file, "key": self.key_file}
        if self.nkey_file:
            with open(self.nkey_file) as file:
                found["nkey"] = file.read().strip()
        return {name: value for name, value in found.items() if value is not None}
