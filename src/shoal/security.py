"""Who may join a cluster: its secret, and later its certificates."""

from __future__ import annotations

import json
import stat
from html import escape
from pathlib import Path
from typing import Any

from shoal import config
from shoal.errors import ConfigurationError


class Security:
    """The secret that all parts of a cluster prove to each other.

    Without one, the user's own is meant: ``SHOAL_SECRET``, ``SHOAL_SECRET_FILE``, the configuration, or a file in the
    user's configuration directory that is made on first use.

    Parameters
    ----------
    secret
        Text or bytes.
    secret_file
        A file that holds it, which only its owner may read (mode 0600).
    require_encryption
        Refuse links without TLS. TLS itself is not built yet, so True is refused.

    Raises
    ------
    ConfigurationError
        If both or an unsafe file are given, or options of TLS.

    Examples
    --------
    >>> Security(secret="not this one")
    <Security: secret given>
    """

    def __init__(
        self,
        require_encryption: bool | None = None,
        *,
        secret: str | bytes | None = None,
        secret_file: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if secret is not None and secret_file is not None:
            raise ConfigurationError("give secret or secret_file, not both")
        if secret is not None and not isinstance(secret, str | bytes):
            raise ConfigurationError(f"secret must be text or bytes, got {type(secret).__name__}")
        if require_encryption or kwargs:
            named = ", ".join(["require_encryption"] * bool(require_encryption) + sorted(kwargs))
            raise ConfigurationError(f"{named}: links with TLS are not built yet; the secret is proven without it")
        self.require_encryption = False
        self._source = "file" if secret_file is not None else "given" if secret is not None else "the user's own"
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if secret_file is not None:
            self._secret = config.read_secret(Path(secret_file).expanduser())

    @property
    def secret(self) -> bytes:
        """The secret; read or made now where none was given."""
        return config.default_secret() if self._secret is None else self._secret

    def __repr__(self) -> str:
        return f"<Security: secret {self._source}>"

    def _repr_html_(self) -> str:
        return f"<b>Security</b> <span>secret: {escape(self._source)}</span>"


def secret_of(security: Any, fallback: bytes | None = None) -> bytes:
    """The secret that the argument ``security`` of a public class means.

    Raises
    ------
    ConfigurationError
        If it is none of :class:`Security`, a mapping of its arguments, bytes or None.
    """
    if security is None:
        return fallback if fallback is not None else config.default_secret()
    if isinstance(security, dict):
        security = Security(**security)
    if isinstance(security, Security):
        return security.secret
    if isinstance(security, bytes):
        return security
    raise ConfigurationError(f"security must be a Security object, got {security!r}")


def write_scheduler_file(path: Path, kind: str, addresses: list[str], secret: bytes) -> None:
    """Write where a scheduler is, and its secret, for those who can read this user's files and nobody else."""
    path = path.expanduser()
    content = {"type": kind, "address": addresses[0], "addresses": addresses, "secret": secret.hex()}
    config.write_private(path, json.dumps(content, indent=2) + "\n")


def read_scheduler_file(path: Path) -> tuple[list[str], bytes | None]:
    """Return the addresses of a scheduler, the first as users write it, and its secret if the file has one.

    Raises
    ------
    ConfigurationError
        If it cannot be read, is no such file, or holds a secret that others can read too.
    """
    path = path.expanduser()
    try:
        content = json.loads(path.read_text())
        addresses = [str(one) for one in content.get("addresses") or [content["address"]]]
        secret = bytes.fromhex(content["secret"]) if content.get("secret") else None
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"scheduler_file {str(path)!r} cannot be used: {error!r}") from error
    if secret is not None and mode & 0o077:
        raise ConfigurationError(f"{path} holds the cluster's secret and others can read it; chmod 600 {path}")
    return addresses, secret
