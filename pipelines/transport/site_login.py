"""A site's login on the cloud's cluster: its files, made where they are missing, and the user that belongs to them.

ca.crt                          whom the site trusts: the authority of the cloud's brokers
NAME.crt NAME.key               a certificate with the site's name (mTLS)
NAME.password                   or a password (SCRAM-SHA-512)
"""

import datetime
import secrets
import shutil
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.transport import access
from pipelines.transport.certificates import belongs, ensure_authority, look, write_private, write_public
from pipelines.transport.kafka import KafkaCluster

PASSWORD_BYTES = 24
RENEW_DAYS = 30
"""A certificate that is good for less is made anew."""


def copy_trust(source: str | None, out: Path) -> Path | None:
    """Give the site the authority that the operator trusts; None where that is the system's."""
    if source is None:
        return None
    path = out / "ca.crt"
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists() or not path.samefile(source):
        shutil.copyfile(source, path)
    return path


def ensure_certificate(site: str, folder: Path, out: Path, days: float, *, renew: bool) -> tuple[Path, Path, bool]:
    """The site's certificate and key in `out`, signed by the authority in `folder`; whether they were made now.

    The authority is made where its folder has none. Raises `ConfigError`.
    """
    now = datetime.datetime.now(datetime.UTC)
    certificate, key = out / f"{site}.crt", out / f"{site}.key"
    authority = ensure_authority(folder, "tidegate sites", now)
    if not renew and _good(certificate, key, authority.certificate, now.timestamp() + RENEW_DAYS * 86_400):
        return certificate, key, False
    pair = authority.issue(site, now, days=days)
    write_private(key, pair.key)
    write_public(certificate, pair.certificate)
    return certificate, key, True


def _good(certificate: Path, key: Path, authority: bytes, until_s: float) -> bool:
    try:
        content = certificate.read_bytes()
        seen, signer = look(content), look(authority)
        return belongs(content, key.read_bytes(), None) and seen.issuer == signer.name and seen.not_after_s > until_s
    except (OSError, ValueError, TypeError):
        return False


def ensure_password(cluster: KafkaCluster, site: str, out: Path, *, renew: bool) -> tuple[Path, bool]:
    """The file in `out` with the password of the site's user; whether the user was made, or given another, now.

    Raises `ConfigError` where the user is there and its password is not: a new one would lock a running site out.
    """
    path = out / f"{site}.password"
    known = site in access.mechanisms(cluster)
    if known and not renew:
        if not path.is_file():
            raise ConfigError(
                f"user '{site}' is there already and {path} is not",
                remedy="name the folder that has it, or give it a new password with --renew",
            )
        return path, False
    if renew or not path.is_file():
        # The file first: a password that was set and is nowhere written down would be lost.
        write_private(path, f"{secrets.token_urlsafe(PASSWORD_BYTES)}\n".encode())
    access.set_password(cluster, site, path.read_text("utf-8").strip())
    return path, True
