"""Certificates of a cluster: who has one that its authority signed may talk to the others, and nobody listens in.

What goes between machines is encrypted, and the secret is proven within. Where certificates were given, both ends show
one. Else who listens shows one that it made for itself: the proof of the secret covers it (``core/session.py``), so
that nobody else's is taken for it. Processes of one machine talk by local sockets.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from shoal.errors import ConfigurationError

#: Whose certificates there are.
ROLES: Final = ("scheduler", "worker", "client")
_VERSIONS: Final = {1.2: ssl.TLSVersion.TLSv1_2, 1.3: ssl.TLSVersion.TLSv1_3}


class Context(ssl.SSLContext):
    """A context that knows the certificate that it shows."""

    #: In DER; empty if there is none.
    shown = b""


class Tls:
    """Certificates and keys: names of files, or their PEM texts.

    Parameters
    ----------
    ca_file
        Of the authority.
    pairs
        Certificate and key, by role. Without a key, the certificate's file has it, too.
    ciphers
        For OpenSSL; its own by default.
    min_version, max_version
        1.2 or 1.3; 1.2 at least by default.

    Raises
    ------
    ConfigurationError
        If a version is neither.
    """

    def __init__(
        self,
        ca_file: str | None,
        pairs: dict[str, tuple[str | None, str | None]],
        ciphers: str | None = None,
        min_version: Any = None,
        max_version: Any = None,
    ) -> None:
        self.ca_file, self.pairs, self.ciphers = ca_file, {role: tuple(pairs[role]) for role in pairs}, ciphers
        self.min_version, self.max_version = (
            _version(min_version, "tls_min_version"),
            _version(max_version, "tls_max_version"),
        )
        self._contexts: dict[tuple[str, bool], Context] = {}

    def context(self, role: str, server: bool) -> Context:
        """What a listener (``server``) or a dialler of this role needs.

        Raises
        ------
        ConfigurationError
            If it has no certificate, or one cannot be used, naming it.
        """
        role = role if role in ROLES else "worker"
        found = self._contexts.get((role, server))
        if found is None:
            found = self._contexts[role, server] = self._make(role, server)
        return found

    def _make(self, role: str, server: bool) -> Context:
        cert, key = self.pairs.get(role, (None, None))
        if self.ca_file is None or cert is None:
            missing = "tls_ca_file" if self.ca_file is None else f"tls_{role}_cert"
            raise ConfigurationError(f"{missing} is not given, and a {role} cannot talk by TLS without")
        made = Context(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False  # who has a certificate of this authority belongs to the cluster, wherever it is
        made.verify_mode = ssl.CERT_REQUIRED
        if server:
            made.num_tickets = 0  # no session is taken up again
        made.minimum_version = _VERSIONS[self.min_version or 1.2]
        if self.max_version is not None:
            made.maximum_version = _VERSIONS[self.max_version]
        try:
            if _is_pem(self.ca_file):
                made.load_verify_locations(cadata=self.ca_file)
            else:
                made.load_verify_locations(cafile=self.ca_file)
            with _file(cert) as cert_file, _file(key) as key_file:
                made.load_cert_chain(str(cert_file), key_file)
                made.shown = _first_certificate(Path(str(cert_file)).read_text())
            if self.ciphers:
                made.set_ciphers(self.ciphers)
        except (OSError, ssl.SSLError) as error:
            shown = [one for one in (self.ca_file, cert, key) if one and not _is_pem(one)]
            raise ConfigurationError(
                f"the certificates of a {role} cannot be used ({', '.join(shown)}): {error}"
            ) from error
        return made

    def export(self) -> dict[str, Any]:
        """As plain values."""
        pairs = {role: list(pair) for role, pair in self.pairs.items()}
        return {
            "ca_file": self.ca_file, "pairs": pairs, "ciphers": self.ciphers,
            "min_version": self.min_version, "max_version": self.max_version,
        }  # fmt: skip

    def __reduce__(self) -> Any:
        return Tls, (self.ca_file, self.pairs, self.ciphers, self.min_version, self.max_version)


def _version(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = 0.0
    if found not in _VERSIONS:
        raise ConfigurationError(f"{name} must be 1.2 or 1.3, got {value!r}")
    return found


def _first_certificate(text: str) -> bytes:
    end = "-----END CERTIFICATE-----"
    start = text.index("-----BEGIN CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(text[start : text.index(end, start) + len(end)])


def _is_pem(text: str) -> bool:
    return "-----BEGIN" in text


@contextmanager
def _file(source: str | None) -> Iterator[str | None]:
    """The name of a file with this text in it, which never is on a disk; or of the file that it is."""
    if source is None or not _is_pem(source):
        yield source
        return
    descriptor = os.memfd_create("shoal-certificate")
    try:
        os.write(descriptor, source.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@cache
def own_listening() -> Context:
    """With a certificate that this process makes for itself, for those who listen and were given none.

    Raises
    ------
    ConfigurationError
        If cryptography is not installed.
    """
    made = temporary(min_version=1.3).context("worker", server=True)
    made.verify_mode = ssl.CERT_NONE
    return made


@cache
def own_dialling() -> Context:
    """For those who dial one that made its certificate for itself: the proof of the secret tells whose it is."""
    made = Context(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def temporary(**options: Any) -> Tls:
    """A certificate made for this cluster alone, which never is on a disk; all roles have it.

    Raises
    ------
    ConfigurationError
        If cryptography is not installed.
    """
    try:
        from datetime import UTC, datetime, timedelta

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise ConfigurationError("making a certificate needs cryptography: pip install cryptography") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a shoal cluster")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert = made.public_bytes(serialization.Encoding.PEM).decode()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return Tls(cert, dict.fromkeys(ROLES, (cert, secret)), **options)


def exists(path: str | None, name: str) -> str | None:
    """``path``, if it is the text of a certificate or there is such a file.

    Raises
    ------
    ConfigurationError
        If there is none, naming ``name``.
    """
    if path is None or _is_pem(path):
        return path
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigurationError(f"{name}: there is no file {path!r}")
    return str(found.absolute())
