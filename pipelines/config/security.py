"""How a cluster is logged in to: the sections `kafka.<tier>.tls` and `kafka.<tier>.sasl`, and what they become.

The file never holds a secret, only where it is: `{env: NAME}` or `{file: PATH}`. Secrets are read when a client is made
and go to librdkafka alone, so whatever prints or encodes a pipeline prints none.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipelines.errors import ConfigError

SECRET_BYTES_MOST = 64 << 10
SECRET_KEYS = ("password", "secret", "key.pem", "oauthbearer.config", "jaas")
"""A raw librdkafka key with one of these in its name holds a secret."""

REMEDY = "name an environment variable, `{env: NAME}`, or a file, `{file: PATH}`"


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a secret is."""

    env: str | None = None
    """Name of an environment variable."""
    file: str | None = None
    """Path, relative to the pipeline file; an end of line at its end does not count."""

    def __post_init__(self) -> None:
        if (self.env is None) == (self.file is None):
            raise ValueError(f"a secret is in one place: {REMEDY}")

    def read(self, key: str) -> str:
        """The secret itself. Raises `ConfigError` that names the key and the place."""
        if self.env is not None:
            secret = os.environ.get(self.env, "")
            if not secret:
                raise ConfigError(f"`{key}`: the environment variable {self.env} is not set", remedy="set it")
            return secret
        text = _read(key, Path(self.file or "")).decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            raise ConfigError(f"`{key}`: {self.file} is empty", remedy="write the secret into it")
        return text


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """TLS towards a cluster. `tls: {}` trusts the authorities that this system trusts."""

    ca: str | None = None
    """PEM file of the authority that signed the broker's certificate, relative to the pipeline file."""
    certificate: str | None = None
    """PEM file of our own certificate: the broker then knows us by it (mTLS)."""
    key: str | None = None
    """PEM file of its key."""
    key_password: Secret | None = None
    """Of the key, where it is encrypted."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` go together: give both, or neither")
        if self.key_password is not None and self.key is None:
            raise ValueError("`key_password` is the password of `key`: give that too")


class Sasl(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A login with user and password."""

    username: str
    password: Secret
    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = "SCRAM-SHA-512"


Raw = Mapping[str, str | int | float | bool | Secret]


def why_not(tls: Tls | None, sasl: Sasl | None, raw: Raw) -> str:
    """What speaks against these sections together, "" where nothing does."""
    if sasl is not None and sasl.mechanism == "PLAIN" and tls is None:
        return "`sasl.mechanism: PLAIN` sends the password as it is: set `tls` too, or take SCRAM-SHA-512"
    if tls is None and sasl is None:
        return ""
    for key in raw:
        prefixes = (("ssl.ca.", "ssl.certificate.", "ssl.key.", "ssl.keystore.") if tls is not None else ()) + (
            ("sasl.",) if sasl is not None else ()
        )
        if key == "security.protocol" or key.startswith(prefixes):
            return f"`librdkafka.{key}` says what `tls` and `sasl` say: take one of them away"
    return ""


def refuse_literals(file: Path, raw: Any) -> None:
    """Refuse a pipeline file in which a secret itself stands, without repeating it. Raises `ConfigError`."""
    kafka = raw.get("kafka")
    for tier, section in kafka.items() if isinstance(kafka, dict) else ():
        if not isinstance(section, dict):
            continue
        given = {f"{name}.{key}": value for name in ("sasl", "tls") for key, value in _items(section.get(name))}
        given |= {f"librdkafka.{key}": value for key, value in _items(section.get("librdkafka"))}
        for key, value in given.items():
            if is_secret(key) and not isinstance(value, dict | None):
                raise ConfigError(f"{file}: `kafka.{tier}.{key}` holds the secret itself", remedy=REMEDY)


def is_secret(key: str) -> bool:
    """Whether a key (`sasl.password`, `librdkafka.ssl.key.pem`) holds a secret."""
    return key == "tls.key_password" or any(piece in key for piece in SECRET_KEYS)


def _items(section: object) -> list[tuple[str, object]]:
    return [(str(key), value) for key, value in section.items()] if isinstance(section, dict) else []


def client_options(name: str, tls: Tls | None, sasl: Sasl | None, raw: Raw) -> dict[str, Any]:
    """The librdkafka settings of a cluster, secrets and all; `name` is its key, such as `kafka.cloud`.

    Raises `ConfigError` for what is missing, cannot be read, does not fit together or has expired.
    """
    options = {
        key: value.read(f"{name}.librdkafka.{key}") if isinstance(value, Secret) else value
        for key, value in raw.items()
    }
    if tls is not None or sasl is not None:
        layers = ("sasl_" if sasl is not None else "", "ssl" if tls is not None else "plaintext")
        options["security.protocol"] = "".join(layers)
    if tls is not None:
        options |= _tls_options(f"{name}.tls", tls)
    if sasl is not None:
        password = sasl.password.read(f"{name}.sasl.password")
        options |= {"sasl.mechanism": sasl.mechanism, "sasl.username": sasl.username, "sasl.password": password}
    return options


def _tls_options(key: str, tls: Tls) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if tls.ca is not None:
        _certificate(f"{key}.ca", tls.ca)
        options["ssl.ca.location"] = tls.ca
    if tls.certificate is not None and tls.key is not None:
        password = tls.key_password.read(f"{key}.key_password") if tls.key_password is not None else None
        _check_pair(key, tls.certificate, tls.key, password)
        options |= {"ssl.certificate.location": tls.certificate, "ssl.key.location": tls.key}
        if password is not None:
            options["ssl.key.password"] = password
    return options


def _certificate(key: str, path: str) -> bytes:
    """A PEM file with a certificate that is good today."""
    # Loaded here: a cluster without TLS needs none of it.
    from pipelines.transport.certificates import look
    from pipelines.transport.refusals import day

    content = _read(key, Path(path))
    try:
        seen = look(content)
    except ValueError as error:
        raise ConfigError(f"`{key}`: {path} holds no certificate in PEM", remedy="give one that does") from error
    if seen.not_after_s < time.time():
        raise ConfigError(f"`{key}`: {path} has expired on {day(seen.not_after_s)}", remedy="renew it")
    if seen.not_before_s > time.time():
        remedy = "correct this machine's clock, or renew it"
        raise ConfigError(f"`{key}`: {path} is not valid before {day(seen.not_before_s)}", remedy=remedy)
    return content


def _check_pair(key: str, certificate: str, private: str, password: str | None) -> None:
    from pipelines.transport.certificates import belongs

    content = _certificate(f"{key}.certificate", certificate)
    secret = _read(f"{key}.key", Path(private))
    try:
        fits = belongs(content, secret, password)
    except TypeError as error:
        remedy = "give `key_password`" if password is None else "take `key_password` away"
        problem = "is encrypted" if password is None else "is not encrypted, and a password is given"
        raise ConfigError(f"`{key}.key`: {private} {problem}", remedy=remedy) from error
    except ValueError as error:
        problem = "holds no key in PEM" if password is None else "holds no key in PEM that this password opens"
        raise ConfigError(f"`{key}.key`: {private} {problem}", remedy="give the key of the certificate") from error
    if not fits:
        raise ConfigError(
            f"`{key}.key`: {private} is not the key of {certificate}", remedy="give the key that it was made with"
        )


def _read(key: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SECRET_BYTES_MOST)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise ConfigError(
            f"`{key}`: {path} cannot be read ({reason})", remedy="correct the path, or its rights"
        ) from error
