"""Certificates: an authority of one's own, and what it signs, each with its private key in one file.

A file has the key first and its certificate then, so that both are replaced at once: Python, nats-server and the `nats`
command line find either in it.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from natterjack import ConfigError
from natterjack_permissions.keys import store

AUTHORITY_DAYS: Final = 3650
DAYS: Final = 365
"""Days that a certificate holds."""
_EARLIER: Final = datetime.timedelta(hours=1)
"""By how much it begins before it is made: clocks differ."""
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True)
class Identity:
    """A private key, and the certificate for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it from its file.

        Raises:
            ConfigError: There is none in it.
        """
        data = path.read_bytes()
        try:
            key = serialization.load_pem_private_key(data, None)
            certificate = x509.load_pem_x509_certificate(data)
        except ValueError as error:
            msg = f"{path} has no private key and certificate in it ({error}); remove it, and it is made anew"
            raise ConfigError(msg) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            msg = f"the key in {path} is of another kind than those made here; remove it, and it is made anew"
            raise ConfigError(msg)
        return cls(key, certificate)

    def write(self, path: Path) -> None:
        """Write it to its file, readable by its owner alone."""
        private = self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        store(path, private + self.certificate.public_bytes(_PEM))

    @property
    def text(self) -> str:
        """The certificate, without the key."""
        return self.certificate.public_bytes(_PEM).decode()

    @property
    def ends(self) -> datetime.datetime:
        """When it does not hold any more."""
        return self.certificate.not_valid_after_utc

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Names and addresses of the server that it is for."""
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return frozenset()
        return frozenset(str(name.value) for name in found)

    def signed(self, other: Identity) -> bool:
        """Tell whether it is the authority that signed another one."""
        try:
            other.certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def issue(self, name: str, hosts: Iterable[str] = ()) -> Identity:
        """Sign a new one, for a client; or for a server, which is also a client of the others of its cluster.

        Args:
            name: Whose it is.
            hosts: Names and addresses of the server; of a client, none.
        """
        hosts = sorted(hosts)
        key, end = _new_key(), min(_now() + datetime.timedelta(days=DAYS), self.ends)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = (
            _builder(_named(name), self.certificate.subject, key, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        return Identity(key, builder.sign(self.key, hashes.SHA256()))


def new_authority(name: str) -> Identity:
    """Return a new authority, which is signed by itself."""
    key, end = _new_key(), _now() + datetime.timedelta(days=AUTHORITY_DAYS)
    builder = (
        _builder(_named(name), _named(name), key, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return Identity(key, builder.sign(key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(checked_host(host))


def checked_host(host: str) -> str:
    """Return the name of a host, or its address, if it can stand in a certificate.

    Raises:
        ConfigError: It cannot.
    """
    if re.fullmatch(r"[A-Za-z0-9*.:_-]+", host):
        return host
    msg = f"{host!r} is no host; write its name as the DNS has it, e.g. server.example or xn--bcher-kva.example"
    raise ConfigError(msg)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
