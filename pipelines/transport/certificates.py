"""A small authority of certificates for brokers, operators and sites (X.509 by `cryptography`), and a look into any.

Keys are EC P-256 in PKCS#8 PEM, which Kafka's PEM stores and librdkafka read alike. A client's certificate names
`clientAuth` alone: with it nobody can pass for a broker. Files with a key are made with mode 0600, never widened later.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipelines.errors import ConfigError
from pipelines.transport.refusals import Seen

AUTHORITY_DAYS = 3650
CLIENT_DAYS = 365
_BACKDATED = datetime.timedelta(minutes=5)
"""Clocks differ: a certificate is good from a little before it was made."""


class Pair(msgspec.Struct, frozen=True):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(certificate=..., key=...)"


class Authority:
    """Signs certificates."""

    def __init__(self, pair: Pair) -> None:
        self.certificate = pair.certificate
        self._certificate = x509.load_pem_x509_certificate(pair.certificate)
        self._key = serialization.load_pem_private_key(pair.key, None)

    def issue(
        self,
        name: str,
        now: datetime.datetime,
        *,
        days: float = CLIENT_DAYS,
        hosts: Sequence[str] = (),
    ) -> Pair:
        """A certificate with the common name `name`, good for `days` from `now` on; with `hosts` also a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        authority = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        begun = (
            _builder(name, now, days)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        )
        if hosts:
            begun = begun.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        return _pair(begun.sign(self._key, hashes.SHA256()), key)  # type: ignore[arg-type]


def new_authority(name: str, now: datetime.datetime, *, days: float = AUTHORITY_DAYS) -> Pair:
    """A certificate that signs others, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    begun = (
        _builder(name, now, days)
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(begun.sign(key, hashes.SHA256()), key)


def ensure_authority(folder: Path, name: str, now: datetime.datetime) -> Authority:
    """The authority in `folder` (`ca.crt`, `ca.key`); made where neither is there. Raises `ConfigError`."""
    certificate, key = folder / "ca.crt", folder / "ca.key"
    if not certificate.exists() and not key.exists():
        pair = new_authority(name, now)
        write_private(key, pair.key)
        write_public(certificate, pair.certificate)
    try:
        return Authority(Pair(certificate.read_bytes(), key.read_bytes()))
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a certificate with its unencrypted key, in PEM"
        raise ConfigError(
            f"the authority in {folder} cannot be read ({reason})",
            remedy="give the folder that has its ca.crt and ca.key",
        ) from error


def look(pem: bytes) -> Seen:
    """What the first certificate of a PEM text says. Raises `ValueError`."""
    certificate = x509.load_pem_x509_certificate(pem)
    return Seen(
        _common_name(certificate.subject),
        _common_name(certificate.issuer),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def belongs(certificate: bytes, key: bytes, password: str | None) -> bool:
    """Whether the key is the certificate's. Raises `ValueError`, and `TypeError` for a password too many or few."""
    private = serialization.load_pem_private_key(key, password.encode() if password is not None else None)
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    public = x509.load_pem_x509_certificate(certificate).public_key()
    return private.public_key().public_bytes(*form) == public.public_bytes(*form)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, never for a moment otherwise; an older one is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    part.replace(path)


def write_public(path: Path, content: bytes) -> None:
    """Write a file that anybody may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _builder(name: str, now: datetime.datetime, days: float) -> x509.CertificateBuilder:
    until = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - _BACKDATED)
        .not_valid_after(until)
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


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)
