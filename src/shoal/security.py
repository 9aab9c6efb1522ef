"""Who may join a cluster: its secret, and its certificates."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any, Final, Self

from shoal import config, private, tls
from shoal.errors import ConfigurationError
from shoal.tls import Tls


class Credentials(bytes):
    """The secret of a cluster, as bytes, and its certificates, if it was given any."""

    tls: Tls | None
    require: bool
    plain: bool

    def __new__(cls, secret: bytes, tls: Tls | None = None, require: bool = False, plain: bool = False) -> Self:
        """``require``: nothing is said by TCP without encryption; ``plain``: nothing need be encrypted."""
        made = super().__new__(cls, secret)
        made.tls, made.require, made.plain = tls, require, plain
        return made

    def __reduce__(self) -> Any:
        return Credentials, (bytes(self), self.tls, self.require, self.plain)

    def __repr__(self) -> str:
        return f"<Credentials{', certificates' if self.tls else ''}>"

    __str__ = __repr__


def pack(secret: bytes) -> str:
    """Credentials as a line of text, for a process that is to have them."""
    tls, require, plain = (getattr(secret, name, None) for name in ("tls", "require", "plain"))
    if not (tls or require or plain):
        return secret.hex()
    exported = None if tls is None else tls.export()
    told = {"secret": secret.hex(), "tls": exported, "require": bool(require), "plain": bool(plain)}
    return "tls:" + json.dumps(told).encode().hex()


def unpack(text: str) -> Credentials:
    """What :func:`pack` was given.

    Raises
    ------
    ValueError
        If it is no such line.
    """
    if not text.startswith("tls:"):
        return Credentials(bytes.fromhex(text))
    told = json.loads(bytes.fromhex(text[4:]))
    tls = None if told["tls"] is None else Tls(**told["tls"])
    return Credentials(bytes.fromhex(told["secret"]), tls, told["require"], told["plain"])


class Security:
    """The secret that all parts of a cluster prove to each other, and the certificates that they show.

    Without a secret, the user's own is meant: ``SHOAL_SECRET``, ``SHOAL_SECRET_FILE``, the configuration, or a file in
    the user's configuration directory that is made on first use. Without certificates, those of the configuration are
    (``distributed.comm.tls``), or none.

    What goes between machines is encrypted in any case: without certificates, who listens makes one for itself, and the
    proof of the secret tells whose it is. With certificates, both ends show one that the authority signed.

    Parameters
    ----------
    require_encryption
        Use TLS within this machine, too, wherever TCP would be used (``distributed.comm.require-encryption``).
    secret
        Text or bytes, 16 at least.
    secret_file
        A file that holds it, which only its owner may read (mode 0600).
    tls_ca_file
        Certificate of the authority. Here and below: the name of a file, or its PEM text.
    tls_scheduler_cert, tls_scheduler_key, tls_worker_cert, tls_worker_key, tls_client_cert, tls_client_key
        Certificates and keys by role. Each process needs those of its own role.
    tls_ciphers, tls_min_version, tls_max_version
        What OpenSSL may use; version 1.2 at least by default.
    plain
        Let machines talk to each other by TCP without encryption (``shoal.security.plain``): whoever sees the network
        reads all that goes by. It still takes the secret to say anything.
    extra_conn_args
        Accepted, and kept.

    Raises
    ------
    ConfigurationError
        If both a secret and a file, or an unsafe file, are given; if a secret is too short; if a file is not there; if
        encryption is both required and not wanted.

    Examples
    --------
    >>> Security(secret="this one is not secret")
    <Security: secret given, no certificates>
    """

    def __init__(
        self,
        require_encryption: bool | None = None,
        *,
        secret: str | bytes | None = None,
        secret_file: str | Path | None = None,
        plain: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if secret is not None and secret_file is not None:
            raise ConfigurationError("give secret or secret_file, not both")
        if secret is not None and not isinstance(secret, str | bytes):
            raise ConfigurationError(f"secret must be text or bytes, got {type(secret).__name__}")
        self._source = "file" if secret_file is not None else "given" if secret is not None else "the user's own"
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if self._secret is not None:
            config.check_secret(self._secret, "the argument secret")
        if secret_file is not None:
            self._secret = config.read_secret(Path(secret_file).expanduser())
        self.extra_conn_args = kwargs.pop("extra_conn_args", None) or {}
        told = {name: kwargs.pop(name, config.get(key, None)) for name, key in _TLS.items()}
        if kwargs:
            raise ConfigurationError(f"{sorted(kwargs)[0]} is no argument of Security; it has {', '.join(_TLS)}")
        told |= {name: tls.exists(told[name], name) for name in _TLS if name.endswith(("_file", "_cert", "_key"))}
        #: As they were given; None where they are not.
        self.tls_ca_file, self.tls_ciphers = told["tls_ca_file"], told["tls_ciphers"]
        self.tls_scheduler_cert, self.tls_scheduler_key = told["tls_scheduler_cert"], told["tls_scheduler_key"]
        self.tls_worker_cert, self.tls_worker_key = told["tls_worker_cert"], told["tls_worker_key"]
        self.tls_client_cert, self.tls_client_key = told["tls_client_cert"], told["tls_client_key"]
        self.tls_min_version, self.tls_max_version = told["tls_min_version"], told["tls_max_version"]
        pairs = {role: (told[f"tls_{role}_cert"], told[f"tls_{role}_key"]) for role in tls.ROLES}
        given = isinstance(self._secret, Credentials)
        self._tls: Tls | None = self._secret.tls if given else None  # type: ignore[union-attr]
        if self.tls_ca_file is not None:
            self._tls = Tls(self.tls_ca_file, pairs, self.tls_ciphers, self.tls_min_version, self.tls_max_version)
        if require_encryption is None:
            required = config.get("distributed.comm.require-encryption", None)
            require_encryption = self._secret.require if given else required  # type: ignore[union-attr]
        self.require_encryption = bool(require_encryption)
        inherited = self._secret.plain if given else config.plain()  # type: ignore[union-attr]
        self.plain = bool(inherited if plain is None else plain)
        if self.plain and (self.require_encryption or self._tls is not None):
            raise ConfigurationError("plain (no encryption) cannot go with certificates or require_encryption")

    @classmethod
    def temporary(cls, **kwargs: Any) -> Self:
        """With certificates made for one cluster alone, which never are on a disk. Needs cryptography.

        Examples
        --------
        >>> cluster = LocalCluster(security=Security.temporary())  # doctest: +SKIP
        """
        versions = {name: kwargs.get(f"tls_{name}") for name in ("ciphers", "min_version", "max_version")}
        made = tls.temporary(**versions)
        cert, key = made.pairs["scheduler"]
        roles = {f"tls_{role}_cert": cert for role in tls.ROLES} | {f"tls_{role}_key": key for role in tls.ROLES}
        return cls(**{"require_encryption": True, "tls_ca_file": cert, **roles, **kwargs})

    @property
    def secret(self) -> Credentials:
        """The secret (read or made now where none was given), with the certificates."""
        found = config.default_secret() if self._secret is None else self._secret
        return Credentials(found, self._tls, self.require_encryption, self.plain)

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        """Certificates and options of ``"scheduler"``, ``"worker"`` or ``"client"``, as they were given.

        Raises
        ------
        ConfigurationError
            If there is no such role.
        """
        if role not in tls.ROLES:
            raise ConfigurationError(f"role must be one of {', '.join(tls.ROLES)}, got {role!r}")
        return {
            "ca_file": self.tls_ca_file,
            "cert": getattr(self, f"tls_{role}_cert"),
            "key": getattr(self, f"tls_{role}_key"),
            "ciphers": self.tls_ciphers,
            "min_version": self.tls_min_version,
            "max_version": self.tls_max_version,
        }

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """What one who dials has: ``ssl_context`` (None without certificates), ``require_encryption``, …"""
        return self._arguments(role, server=False)

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """What one who listens has."""
        return self._arguments(role, server=True)

    def _arguments(self, role: str, server: bool) -> dict[str, Any]:
        self.get_tls_config_for_role(role)
        context = None if self._tls is None else self._tls.context(role, server)
        told = {"ssl_context": context, "require_encryption": self.require_encryption}
        return told if server else {**told, "extra_conn_args": self.extra_conn_args}

    def _told(self) -> str:
        how = "no certificates" if self._tls is None else "certificates"
        further = ", encryption required" if self.require_encryption else ", no encryption" if self.plain else ""
        return f"secret {self._source}, {how}{further}"

    def __repr__(self) -> str:
        return f"<Security: {self._told()}>"

    def _repr_html_(self) -> str:
        return f"<b>Security</b> <span>{escape(self._told())}</span>"


#: Arguments of :class:`Security`, and where the configuration has them.
_TLS: Final = {
    "tls_ca_file": "distributed.comm.tls.ca-file",
    "tls_ciphers": "distributed.comm.tls.ciphers",
    "tls_min_version": "distributed.comm.tls.min-version",
    "tls_max_version": "distributed.comm.tls.max-version",
    **{f"tls_{role}_{what}": f"distributed.comm.tls.{role}.{what}" for role in tls.ROLES for what in ("cert", "key")},
}


def secret_of(security: Any, fallback: bytes | None = None) -> Credentials:
    """The credentials that the argument ``security`` of a public class means.

    Raises
    ------
    ConfigurationError
        If it is none of :class:`Security`, a mapping of its arguments, bytes, True (temporary certificates) or None.
    """
    if security is None:
        if fallback is None:
            return Security().secret
        return fallback if isinstance(fallback, Credentials) else Security(secret=fallback).secret
    if security is True:
        security = Security.temporary()
    if isinstance(security, dict):
        security = Security(**security)
    if isinstance(security, Security):
        return security.secret
    if isinstance(security, Credentials):
        config.check_secret(security, "the argument security")
        return security
    if isinstance(security, bytes):
        return Security(secret=security).secret
    raise ConfigurationError(f"security must be a Security object, got {security!r}")


def write_scheduler_file(path: Path, kind: str, addresses: list[str], secret: bytes) -> None:
    """Write where a scheduler is, and its secret, for those who can read this user's files and nobody else."""
    path = path.expanduser()
    content = {"type": kind, "address": addresses[0], "addresses": addresses, "secret": pack(secret)}
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
        data, mode = private.read(path)
        content = json.loads(data)
        addresses = [str(one) for one in content.get("addresses") or [content["address"]]]
        secret = unpack(content["secret"]) if content.get("secret") is not None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"scheduler_file {str(path)!r} cannot be used: {error!r}") from error
    if secret is not None and mode & 0o077:
        raise ConfigurationError(f"{path} holds the cluster's secret and others can read it; chmod 600 {path}")
    if secret is not None:
        config.check_secret(secret, f"the scheduler file {path}")
    return addresses, secret
