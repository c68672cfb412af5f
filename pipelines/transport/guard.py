"""Watches the errors of Kafka clients for a refused login, and makes sure before it is believed.

Constraints
- A client's callback only notes (it is called within the client); `raise_if_refused` is called outside of it.
- A refusal ends a worker for good, so one text is not enough: a new client must be refused for the same reason, or
  a probe must have seen that the listener speaks otherwise than we do. A broker that restarts confirms neither.
"""

import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from pipelines.transport.refusals import Listener, Login, Seen, Sign, denied, refused, sign_of

T = TypeVar("T")

CONFIRM_S = 3.0
"""A second refusal takes 0.3 s: Kafka answers wrong passwords late on purpose."""
PROBE_S = 1.0
"""For each of connecting and answering."""
PROBE_EVERY_S = 5.0
"""A probe of a host that takes no connection waits: a loop that reads must not do so at each turn."""
TURN_S = 0.05
SLICE_FIRST_S, SLICE_MOST_S = 0.25, 2.0
"""A long request is asked in slices, each twice as long as the one before; in between the errors are looked at."""


_NEEDS = {"read": AclOperation.READ, "write": AclOperation.WRITE}


class Guard:
    """The refusals of one client (or of one after another), for the login that is in its options."""

    def __init__(self, cluster: str, options: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._options = {key: value for key, value in options.items() if not key.startswith(("group.", "client.id"))}
        self._signs: dict[Sign, None] = {}
        self._connected = False
        self._probe_from_s = 0.0
        self._login: Login | None = None

    @property
    def login(self) -> Login:
        """Who we are, as the options say it."""
        if self._login is None:
            self._login = login_of(self._cluster, self._options)
        return self._login

    def note(self, error: KafkaError) -> None:
        """For a client's error callback."""
        sign = sign_of(error)
        if sign is not None and not (sign is Sign.DOUBT and self._connected):
            self._signs[sign] = None

    def connected(self) -> None:
        """Something was answered: whatever was noted before is over."""
        self._connected = True
        self._signs.clear()

    def raise_if_refused(self) -> None:
        """Raise `AccessError` if what was noted is a refusal that lasts. Returns at once where nothing was noted."""
        signs, self._signs = self._signs, {}
        for sign in sorted(signs, key=lambda sign: sign is Sign.DOUBT):
            if sign is Sign.DOUBT:
                if time.monotonic() < self._probe_from_s:
                    self._signs[sign] = None
                    continue
                self._probe_from_s = time.monotonic() + PROBE_EVERY_S
            listener = probe(self.login.address)
            if sign is not Sign.DOUBT and not self._confirmed(sign):
                continue
            if sign is Sign.BROKER_CERTIFICATE and self._trusts_all_but_the_name():
                sign = Sign.BROKER_NAME
            error = refused(self.login, sign, listener, time.time())
            if error is not None:
                raise error

    def raise_if_denied(self, error: KafkaError, verb: str, *resources: str) -> None:
        """Raise `AccessError` if the error says that a permission is missing; on one of `resources`, if they are many.

        `verb`: what we may not do; of topics `read`, `write` or `see`.
        """
        missing = denied(self.login, error, verb, resources)
        if missing is None:
            return
        if len(resources) > 1 and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            missing = denied(self.login, error, verb, self.lacking(verb, resources) or resources)
        if missing is not None:
            raise missing

    def raise_if_lacking(self, verb: str, topics: Sequence[str]) -> None:
        """Raise `AccessError` if one of the topics may not be read or written; Kafka is asked."""
        lacking = self.lacking(verb, topics)
        if lacking:
            self.raise_if_denied(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), verb, lacking[0])

    def lacking(self, verb: str, topics: Sequence[str]) -> list[str]:
        """Those of the topics on which our login lacks a permission; none where Kafka does not answer in time."""
        client = AdminClient({**self._options, "log_level": 0})
        asked = client.describe_topics(
            TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=CONFIRM_S
        )
        found = []
        for topic, future in asked.items():
            try:
                allowed = future.result().authorized_operations or []
            except KafkaException as error:
                if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    found.append(topic)
                continue
            if verb in _NEEDS and _NEEDS[verb] not in allowed:
                found.append(topic)
        return found

    def in_slices(self, call: Callable[[float], T], poll: Callable[[float], object], timeout_s: float) -> T:
        """`call(seconds)` until it is answered, `timeout_s` in all. It must be one that can be made again after a
        time-out. Raises what it raises, and `AccessError`."""
        until_s = time.monotonic() + timeout_s
        slice_s = SLICE_FIRST_S
        while True:
            left_s = until_s - time.monotonic()
            try:
                answer = call(max(min(slice_s, left_s), 0.001))
            except KafkaException as error:
                poll(0)
                self.raise_if_refused()
                # A coordinator that still loads answers so, too: the first seconds of a fresh broker.
                known = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)
                waits = error.args[0].retriable() or error.args[0].code() in known
                if not waits or slice_s >= left_s:
                    raise
                slice_s = min(slice_s * 2, SLICE_MOST_S)
            else:
                self.connected()
                return answer

    def _trusts_all_but_the_name(self) -> bool:
        """Whether the broker's certificate is one that we trust, for another host. librdkafka's text is the same."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        path, text = self._options.get("ssl.ca.location"), self._options.get("ssl.ca.pem")
        host, _, port = self.login.address.split(",")[0].strip().rpartition(":")
        try:
            if path or text:
                context.load_verify_locations(path, cadata=text)
            else:
                context.load_default_certs()
            with (
                socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return True
        except (OSError, ValueError):
            return False

    def _confirmed(self, sign: Sign) -> bool:
        """Whether a new client is refused for the same reason."""
        seen: list[Sign | None] = []
        client = AdminClient({**self._options, "log_level": 0, "error_cb": lambda error: seen.append(sign_of(error))})
        answer = client.describe_cluster(request_timeout=CONFIRM_S)
        until_s = time.monotonic() + CONFIRM_S
        while sign not in seen and not answer.done() and time.monotonic() < until_s:
            client.poll(TURN_S)
        return sign in seen


def login_of(cluster: str, options: Mapping[str, Any]) -> Login:
    """Who the client options say that we are. A certificate that cannot be read counts as none."""
    protocol = str(options.get("security.protocol", "plaintext")).lower()
    mechanism = None
    if protocol.startswith("sasl"):
        mechanism = str(options.get("sasl.mechanism") or options.get("sasl.mechanisms") or "GSSAPI")
    tls = protocol.endswith("ssl")
    certificate = _certificate(options) if tls else None
    user = str(options.get("sasl.username", "")) if mechanism else certificate.name if certificate else ""
    return Login(cluster, str(options["bootstrap.servers"]), tls, mechanism, user, certificate)


def _certificate(options: Mapping[str, Any]) -> Seen | None:
    # Loaded here: most clients show no certificate.
    from pipelines.transport.certificates import look

    given, path = options.get("ssl.certificate.pem"), options.get("ssl.certificate.location")
    try:
        if given:
            return look(str(given).encode())
        return look(Path(path).read_bytes()) if path else None
    except (OSError, ValueError):
        return None


def probe(address: str) -> Listener | None:
    """How the first of the addresses that answers wants to be spoken to; None where nothing of Kafka answers."""
    for one in address.split(","):
        host, _, port = one.strip().rpartition(":")
        if port.isdecimal():
            found = _probe(host.strip("[]"), int(port))
            if found is not None:
                return found
    return None


def _probe(host: str, port: int) -> Listener | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # It is only asked how it speaks.
    try:
        with (
            socket.create_connection((host, port), PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return Listener(True, _mechanisms(secured))
    except OSError:  # ssl.SSLError is one.
        pass
    try:
        with socket.create_connection((host, port), PROBE_S) as plain:
            mechanisms = _mechanisms(plain)
    except OSError:
        return None
    return None if mechanisms is None else Listener(False, mechanisms)


_SASL_HANDSHAKE, _ILLEGAL_SASL_STATE = 17, 34
_ANSWER_BYTES_MOST = 4096


def _mechanisms(connection: socket.socket) -> list[str] | None:
    """What a listener answers to a SaslHandshake (version 0) for a mechanism that is none; None: nothing of Kafka's.

    Source: Kafka protocol guide, SaslHandshake API (key 17).
    """
    client, mechanism = b"tidegate", b"none"
    body = struct.pack(f">hhih{len(client)}s", _SASL_HANDSHAKE, 0, 1, len(client), client)
    body += struct.pack(f">h{len(mechanism)}s", len(mechanism), mechanism)
    try:
        connection.sendall(struct.pack(">i", len(body)) + body)
        (size,) = struct.unpack(">i", _exactly(connection, 4))
        if not 8 <= size <= _ANSWER_BYTES_MOST:
            return None
        answer = _exactly(connection, size)
    except OSError:
        return None
    correlation, error = struct.unpack_from(">ih", answer)
    if correlation != 1:
        return None
    if error == _ILLEGAL_SASL_STATE:
        return []
    names, at = [], 10
    while at + 2 <= len(answer):
        (length,) = struct.unpack_from(">h", answer, at)
        names.append(answer[at + 2 : at + 2 + length].decode("ascii", "replace"))
        at += 2 + length
    return names


def _exactly(connection: socket.socket, count: int) -> bytes:
    taken = b""
    while len(taken) < count:
        piece = connection.recv(count - len(taken))
        if not piece:
            raise ConnectionError
        taken += piece
    return taken
