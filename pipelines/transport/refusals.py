"""Refused logins and missing permissions, each as one line. Pure: the errors of a client and what a probe saw go in.

librdkafka tries a refused login again for ever and tells of it only on its error callback, as `_AUTHENTICATION`, `_SSL`
or `_TRANSPORT` with a text; a request meanwhile just times out. What the texts say was taken from librdkafka 2.16 and
Kafka 4.3 (docs/security.md). A text is never enough to end a worker: `guard.py` asks a second time.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from confluent_kafka import KafkaError

from pipelines.errors import AccessError


class Sign(StrEnum):
    """What an error of a client points to."""

    PASSWORD = "password"
    MECHANISM = "mechanism"
    NO_LOGIN = "no login"
    """We log in, and the listener takes no logins."""
    LOGIN = "login"
    """Refused for another reason."""
    CERTIFICATE = "certificate"
    """The broker does not take ours, or that we sent none."""
    BROKER_CERTIFICATE = "broker's certificate"
    BROKER_NAME = "broker's name"
    DOUBT = "doubt"
    """The connection was closed without a word: the broker is away, or we speak to it in a way it does not know."""


class Seen(msgspec.Struct, frozen=True):
    """What a certificate says. Times are seconds since the Unix epoch."""

    name: str
    """Its common name: the user that Kafka takes it for."""
    issuer: str
    not_before_s: float
    not_after_s: float


class Login(msgspec.Struct, frozen=True):
    """Who we are to a cluster."""

    cluster: str
    """Such as `kafka.cloud`, its key in the pipeline file."""
    address: str
    tls: bool
    mechanism: str | None
    """Of SASL; None where no password is sent."""
    user: str
    """"" where we show neither password nor certificate."""
    certificate: Seen | None = None


class Listener(msgspec.Struct, frozen=True):
    """What a probe found at the address."""

    tls: bool
    mechanisms: Sequence[str] | None
    """Of SASL that it takes; empty where it takes no logins, None where it does not say."""


_ALERTS = ("bad certificate", "certificate unknown", "certificate expired", "certificate revoked", "unknown ca")
_ALERTS_BY_VERSION = ("certificate required", "handshake failure", "unsupported certificate", "access denied")


def sign_of(error: KafkaError) -> Sign | None:
    """What an error of a client's connection points to; None: not to a refusal."""
    code, text = error.code(), error.str()
    if code == KafkaError._AUTHENTICATION:
        for piece, sign in (
            ("invalid credentials", Sign.PASSWORD),
            ("Unsupported SASL mechanism", Sign.MECHANISM),
            ("current SASL state", Sign.NO_LOGIN),
        ):
            if piece in text:
                return sign
        return Sign.LOGIN
    if "alert" in text and any(alert in text for alert in (*_ALERTS, *_ALERTS_BY_VERSION)):
        return Sign.CERTIFICATE
    if "certificate verify failed" in text:
        return Sign.BROKER_CERTIFICATE
    if code in (KafkaError._ALL_BROKERS_DOWN, KafkaError._SSL) or "SSL handshake failed" in text:
        return Sign.DOUBT
    return None


def refused(login: Login, sign: Sign, listener: Listener | None, now_s: float) -> AccessError | None:
    """The error of a login that is refused for good; None where a later try may succeed."""
    mismatch = None if listener is None else _mismatch(login, listener)
    problem, remedy = mismatch or _reason(login, sign, listener, now_s)
    if not problem:
        return None
    where = f"{login.cluster} at {login.address}"
    if mismatch is None and sign in (Sign.BROKER_CERTIFICATE, Sign.BROKER_NAME):
        return AccessError(f"{where} is not trusted: {problem}", remedy=remedy)
    who = f"user '{login.user}'" if login.user else "us, who show no user"
    return AccessError(f"{where} refuses {who}: {problem}", remedy=remedy)


def _mismatch(login: Login, listener: Listener) -> tuple[str, str] | None:
    """Whether the two speak to each other in different ways."""
    tls, sasl = f"`{login.cluster}.tls`", f"`{login.cluster}.sasl`"
    if listener.tls and not login.tls:
        return "the listener there speaks TLS, we do not", f"set {tls}"
    if login.tls and not listener.tls:
        return "the listener there does not speak TLS", f"take {tls} away, or give the address of a TLS listener"
    if listener.mechanisms and login.mechanism is None:
        taken = ", ".join(listener.mechanisms)
        return f"the listener there asks for user and password ({taken}), we send none", f"set {sasl}"
    return None


def _reason(login: Login, sign: Sign, listener: Listener | None, now_s: float) -> tuple[str, str]:
    name = login.cluster
    if sign is Sign.PASSWORD:
        return (
            f"the password is wrong, or there is no such user for {login.mechanism}",
            f"correct `{name}.sasl`, or make the user with `tidegate site add`",
        )
    if sign is Sign.MECHANISM:
        taken = f"; it takes {', '.join(listener.mechanisms)}" if listener is not None and listener.mechanisms else ""
        return f"the broker does not take {login.mechanism}{taken}", f"correct `{name}.sasl.mechanism`"
    if sign is Sign.NO_LOGIN:
        return (
            "the listener there takes no passwords",
            f"take `{name}.sasl` away, or give the address of a SASL listener",
        )
    if sign is Sign.LOGIN:
        return "the login failed", f"compare `{name}.sasl` with what the broker's log says"
    if sign is Sign.CERTIFICATE:
        return _certificate_reason(login, now_s)
    if sign is Sign.BROKER_CERTIFICATE:
        return (
            "its certificate is not signed by an authority that we know",
            f"set `{name}.tls.ca` to the authority that signed the broker's certificate",
        )
    if sign is Sign.BROKER_NAME:
        return (
            "its certificate is for another host",
            f"give `{name}.bootstrap` a name that stands in the broker's certificate",
        )
    return "", ""


def _certificate_reason(login: Login, now_s: float) -> tuple[str, str]:
    seen, name = login.certificate, login.cluster
    if seen is None:
        return (
            "no certificate was sent and the broker asks for one",
            f"set `{name}.tls.certificate` and `key`, or give the address of a listener that takes passwords",
        )
    if seen.not_after_s < now_s:
        return f"its certificate has expired on {day(seen.not_after_s)}", f"renew `{name}.tls.certificate`"
    if seen.not_before_s > now_s:
        return (
            f"its certificate is not valid before {day(seen.not_before_s)}",
            f"correct this machine's clock, or renew `{name}.tls.certificate`",
        )
    return (
        f"its certificate is signed by '{seen.issuer}', an authority that the broker does not know",
        f"give `{name}.tls.certificate` one that the broker's authority signed",
    )


def day(at_s: float) -> str:
    """A date, UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


_MISSING = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
}


def denied(login: Login, error: KafkaError, verb: str, resources: Sequence[str] = ()) -> AccessError | None:
    """The error where a permission is missing; None for any other. `verb`: what we may not do, such as `read`."""
    kind = _MISSING.get(error.code())
    if kind is None:
        return None
    user = f"user '{login.user or 'ANONYMOUS'}'"
    names = " or ".join(f"'{name}'" for name in resources)
    named = f"{kind} {names}" if names and kind != "cluster" else f"the {kind}"
    return AccessError(
        f"{login.cluster} at {login.address}: {user} may not {verb} {named}",
        remedy="the cluster's operator gives a site its permissions with `tidegate site add`",
    )
