"""Logins by the pipeline file, certificates, and what errors of a client are taken for."""

import datetime
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import yaml
from confluent_kafka import KafkaError
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import load
from pipelines.config.clusters import cluster, security
from pipelines.errors import AccessError, ConfigError
from pipelines.transport import quotas
from pipelines.transport.access import Rule, site_rules
from pipelines.transport.broker.settings import BrokerSettings, server_properties
from pipelines.transport.certificates import (
    Authority,
    Pair,
    belongs,
    ensure_authority,
    look,
    new_authority,
    write_private,
)
from pipelines.transport.guard import Guard, probe
from pipelines.transport.refusals import Listener, Login, Seen, Sign, denied, refused, sign_of
from schemas.positions import owner_id
from schemas.topics import AGGREGATES, CLOUD_DEAD_LETTERS, CLOUD_GROUP, SITE_NAME, SiteTopics, Tier

NOW = datetime.datetime.now(datetime.UTC)
SECRET = "s3cret-that-nobody-may-see"
PROBE = Login("kafka.cloud", "host:1", tls=True, mechanism=None, user="site-1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(new_authority("ours", NOW))


def write(folder: Path, pair: Pair, name: str = "me") -> dict[str, str]:
    (folder / f"{name}.crt").write_bytes(pair.certificate)
    (folder / f"{name}.key").write_bytes(pair.key)
    return {"certificate": f"{name}.crt", "key": f"{name}.key"}


def pipeline_file(folder: Path, **cloud: object) -> Path:
    file = folder / "pipeline.yaml"
    content = {"name": "shop", "source": {"path": "."}, "kafka": {"cloud": {"bootstrap": "host:1", **cloud}}}
    file.write_text(yaml.safe_dump(content))
    return file


# The pipeline file.


def test_a_login_becomes_client_settings(tmp_path, authority, monkeypatch):
    monkeypatch.setenv("CLOUD_PASSWORD", SECRET)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    pair = write(tmp_path, authority.issue("me", NOW))
    file = pipeline_file(
        tmp_path,
        tls={"ca": "ca.crt", **pair},
        sasl={"username": "me", "password": {"env": "CLOUD_PASSWORD"}},
        librdkafka={"linger.ms": 7},
    )
    assert security(load(file), Tier.CLOUD) == {
        "linger.ms": 7,
        "security.protocol": "sasl_ssl",
        "ssl.ca.location": str(tmp_path / "ca.crt"),
        "ssl.certificate.location": str(tmp_path / "me.crt"),
        "ssl.key.location": str(tmp_path / "me.key"),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
    }
    assert security(load(file), Tier.EDGE) == {}


@pytest.mark.parametrize(
    ("section", "protocol"),
    [({"tls": {}}, "ssl"), ({"sasl": {"username": "me", "password": {"file": "pw"}}}, "sasl_plaintext")],
)
def test_either_section_alone(tmp_path, section, protocol):
    (tmp_path / "pw").write_text(f"{SECRET}\n")
    options = security(load(pipeline_file(tmp_path, **section)), Tier.CLOUD)
    assert options["security.protocol"] == protocol
    assert options.get("sasl.password", SECRET) == SECRET


SASL = {"username": "me", "password": {"env": "CLOUD_PASSWORD"}}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"sasl": {**SASL, "password": SECRET}}, "`kafka.cloud.sasl.password` holds the secret itself: name an envir"),
        ({"sasl": {**SASL, "password": 12345678}}, "`kafka.cloud.sasl.password` holds the secret itself"),
        ({"tls": {"key_password": SECRET}}, "`kafka.cloud.tls.key_password` holds the secret itself"),
        ({"librdkafka": {"sasl.password": SECRET}}, "`kafka.cloud.librdkafka.sasl.password` holds the secret itself"),
        ({"librdkafka": {"ssl.key.pem": SECRET}}, "`kafka.cloud.librdkafka.ssl.key.pem` holds the secret itself"),
        ({"sasl": {**SASL, "password": {"env": "A", "file": "B"}}}, "a secret is in one place"),
        ({"sasl": {**SASL, "password": {"envv": "A"}}}, "`kafka.cloud.sasl.password.envv` is not a known key"),
        ({"sasl": {**SASL, "mechanism": "PLAIN"}}, "`sasl.mechanism: PLAIN` sends the password as it is"),
        ({"sasl": SASL, "librdkafka": {"sasl.username": "x"}}, "`librdkafka.sasl.username` says what `tls` and `sasl`"),
        ({"tls": {}, "librdkafka": {"security.protocol": "ssl"}}, "`librdkafka.security.protocol` says what"),
        ({"tls": {}, "librdkafka": {"ssl.ca.location": "x"}}, "`librdkafka.ssl.ca.location` says what"),
        ({"tls": {"certificate": "me.crt"}}, "`certificate` and `key` go together"),
        ({"tls": {"key_password": {"env": "A"}}}, "`key_password` is the password of `key`"),
    ],
)
def test_what_cannot_be_is_refused_without_repeating_a_secret(tmp_path, section, said):
    with pytest.raises(ConfigError) as raised:
        load(pipeline_file(tmp_path, **section))
    line = str(raised.value)
    assert said in line
    assert "\n" not in line
    assert SECRET not in line


def test_what_is_missing_or_does_not_fit_is_named_before_anything_starts(tmp_path, authority, monkeypatch):
    monkeypatch.delenv("CLOUD_PASSWORD", raising=False)
    good, other = authority.issue("me", NOW), authority.issue("me", NOW)
    encrypted = serialization.load_pem_private_key(good.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(SECRET.encode()),
    )
    pair = write(tmp_path, good)
    write(tmp_path, Pair(good.certificate, other.key), "mixed")
    write(tmp_path, Pair(good.certificate, encrypted), "locked")
    write(tmp_path, authority.issue("me", NOW, days=-2), "old")
    write(tmp_path, authority.issue("me", NOW + datetime.timedelta(days=2)), "new")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "wrong").write_text("wrong")
    names = {name: {"certificate": f"{name}.crt", "key": f"{name}.key"} for name in ("mixed", "locked", "old", "new")}
    cases = [
        ({"sasl": SASL}, "`kafka.cloud.sasl.password`: the environment variable CLOUD_PASSWORD is not set"),
        ({"sasl": {**SASL, "password": {"file": "gone"}}}, f"{tmp_path}/gone cannot be read (No such file"),
        ({"sasl": {**SASL, "password": {"file": "empty"}}}, f"{tmp_path}/empty is empty"),
        ({"tls": {"ca": "gone.crt"}}, f"`kafka.cloud.tls.ca`: {tmp_path}/gone.crt cannot be read"),
        ({"tls": {"ca": "empty"}}, f"`kafka.cloud.tls.ca`: {tmp_path}/empty holds no certificate"),
        ({"tls": {**pair, "key": "empty"}}, f"`kafka.cloud.tls.key`: {tmp_path}/empty holds no key in PEM"),
        ({"tls": names["mixed"]}, f"{tmp_path}/mixed.key is not the key of {tmp_path}/mixed.crt"),
        ({"tls": names["old"]}, f"{tmp_path}/old.crt has expired on {(NOW - datetime.timedelta(days=2)).date()}"),
        ({"tls": names["new"]}, f"{tmp_path}/new.crt is not valid before"),
        ({"tls": names["locked"]}, f"{tmp_path}/locked.key is encrypted: give `key_password`"),
        (
            {"tls": {**names["locked"], "key_password": {"file": "wrong"}}},
            "holds no key in PEM that this password opens",
        ),
        ({"tls": {**pair, "key_password": {"file": "wrong"}}}, "me.key is not encrypted, and a password is given"),
    ]
    for section, said in cases:
        pipeline = load(pipeline_file(tmp_path, **section))
        with pytest.raises(ConfigError) as raised:
            cluster(pipeline, Tier.CLOUD)
        line = str(raised.value)
        assert said in line
        assert "\n" not in line
        assert SECRET not in line
    monkeypatch.setenv("CLOUD_PASSWORD", SECRET)
    opened = load(pipeline_file(tmp_path, tls={**names["locked"], "key_password": {"env": "CLOUD_PASSWORD"}}))
    assert security(opened, Tier.CLOUD)["ssl.key.password"] == SECRET


def test_no_form_of_a_pipeline_or_a_cluster_shows_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUD_PASSWORD", SECRET)
    raw = {"ssl.keystore.password": {"env": "CLOUD_PASSWORD"}}
    pipeline = load(pipeline_file(tmp_path, sasl=SASL, librdkafka=raw))
    one = cluster(pipeline, Tier.CLOUD)
    shown = [repr(pipeline), str(pipeline), repr(one), repr(one._guard), repr(one._guard.login)]
    assert [text for text in (*shown, msgspec.json.encode(pipeline.kafka).decode()) if SECRET in text] == []
    assert one._options["ssl.keystore.password"] == SECRET


# Certificates.


def test_a_site_s_certificate_serves_no_broker_and_signs_nothing(authority):
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    pair = authority.issue("site-1", NOW, days=10)
    made = x509.load_pem_x509_certificate(pair.certificate)
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    seen = look(pair.certificate)
    assert (seen.name, seen.issuer) == ("site-1", "ours")
    assert belongs(pair.certificate, pair.key, None)
    assert not belongs(pair.certificate, authority.issue("site-1", NOW).key, None)
    assert "BEGIN" not in repr(pair)


def test_an_authority_is_made_once_and_a_damaged_one_refused(tmp_path):
    first = ensure_authority(tmp_path / "ca", "ours", NOW)
    assert ensure_authority(tmp_path / "ca", "ours", NOW).certificate == first.certificate
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    (tmp_path / "ca" / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\): give the folder that has"):
        ensure_authority(tmp_path / "ca", "ours", NOW)


def test_a_private_file_is_replaced_and_never_wider(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)


def test_a_secured_broker_has_no_plain_listener():
    lines = server_properties(BrokerSettings(broker_port=1, controller_port=2, scram_port=3)).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert len(lines) == len(found)
    protocols = dict(pair.split(":") for pair in found["listener.security.protocol.map"].split(","))
    listeners = [listener.split("://")[0] for listener in found["listeners"].split(",")]
    assert sorted(listeners) == sorted(protocols)
    assert set(protocols.values()) == {"SSL", "SASL_SSL"}
    assert found["allow.everyone.if.no.acl.found"] == "false"
    assert "ANONYMOUS" not in found["super.users"]


# What a site may do.

NAMES = st.from_regex(SITE_NAME, fullmatch=True)


@given(NAMES, NAMES, st.booleans())
def test_no_rule_of_a_site_opens_what_is_another_s(name, other, longer):
    other = f"{name}{other}"[:63] if longer else other
    if name == other:
        return
    rules, of = site_rules(name), SiteTopics(other)
    owned = [spec.name for spec in of.specs()]
    for operation in ("read", "write", "describe"):
        closed = [*(("topic", topic) for topic in owned), ("topic", AGGREGATES), ("topic", CLOUD_DEAD_LETTERS)]
        closed += [("group", f"{other}.own"), ("group", CLOUD_GROUP), ("transactional_id", f"uplink.{other}")]
        closed += [("transactional_id", f"cloud.{other}"), ("transactional_id", f"create.up.{other}")]
        closed += [("transactional_id", owner_id(f"uplink.{other}"))]
        for kind, resource in closed:
            assert [rule for rule in rules if rule.allows(kind, resource, operation)] == []


@given(NAMES)
def test_a_site_may_do_what_its_forwarders_do(name):
    topics, rules = SiteTopics(name), site_rules(name)

    def may(kind, resource, operation):
        return any(rule.allows(kind, resource, operation) for rule in rules)

    for topic in (topics.up_results, topics.up_positions, "offload.p0", "offload.p1", "offload.p2"):
        assert may("topic", topic, "write")
    for topic in (topics.up_positions, topics.down_answers, "control"):
        assert may("topic", topic, "read")
    ids = [f"uplink.{name}", f"uplink.{name}.owner"]
    assert all(may("transactional_id", one, "write") for one in ids)
    assert [rule.name for rule in rules if rule.kind == "transactional_id"] == ids
    for topic in (topics.down_answers, "control"):
        assert not may("topic", topic, "write")
    assert not may("topic", "offload.p1", "read")


def test_rules_say_what_they_are():
    assert str(Rule("topic", "a.", "read", prefix=True)) == "read topic a.*"


# What an error is taken for.


@pytest.mark.parametrize(
    ("code", "text", "sign"),
    [
        (KafkaError._AUTHENTICATION, "SASL authentication error: ... due to invalid credentials with", Sign.PASSWORD),
        (KafkaError._AUTHENTICATION, "handshake failed: Broker: Unsupported SASL mechanism: broker's", Sign.MECHANISM),
        (KafkaError._AUTHENTICATION, "Request not valid in current SASL state", Sign.NO_LOGIN),
        (KafkaError._AUTHENTICATION, "something else", Sign.LOGIN),
        (KafkaError._TRANSPORT, "Receive failed: ... ssl/tls alert bad certificate: SSL alert 42", Sign.CERTIFICATE),
        (KafkaError._TRANSPORT, "Receive failed: ... ssl/tls alert certificate unknown: SSL", Sign.CERTIFICATE),
        (KafkaError._SSL, "tlsv13 alert certificate required", Sign.CERTIFICATE),
        (KafkaError._SSL, "SSL handshake failed: ... certificate verify failed: broker", Sign.BROKER_CERTIFICATE),
        (KafkaError._TRANSPORT, "SSL handshake failed: Disconnected: connecting to a PLAINTEXT", Sign.DOUBT),
        (KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down", Sign.DOUBT),
        (KafkaError._TRANSPORT, "Connect to ipv4#127.0.0.1:1 failed: Connection refused", None),
        (KafkaError._TIMED_OUT, "timed out", None),
    ],
)
def test_signs(code, text, sign):
    assert sign_of(KafkaError(code, text)) is sign


@pytest.mark.parametrize(
    ("login", "sign", "listener", "said"),
    [
        (PROBE, Sign.DOUBT, None, None),
        (PROBE, Sign.DOUBT, Listener(True, []), None),
        (PROBE, Sign.DOUBT, Listener(True, None), None),
        (PROBE, Sign.DOUBT, Listener(False, []), "does not speak TLS: take `kafka.cloud.tls` away"),
        (PROBE, Sign.DOUBT, Listener(True, ["PLAIN"]), "asks for user and password (PLAIN)"),
        (PROBE, Sign.CERTIFICATE, None, "no certificate was sent"),
        (PROBE, Sign.BROKER_NAME, None, "kafka.cloud at host:1 is not trusted: its certificate is for another host"),
    ],
)
def test_reasons(login, sign, listener, said):
    error = refused(login, sign, listener, 0.0)
    assert (error is None) is (said is None)
    assert said is None or said in str(error)


def test_the_reason_for_a_certificate_is_its_own_date_or_its_issuer():
    def said(before_s, after_s):
        login = msgspec.structs.replace(PROBE, certificate=Seen("site-1", "rogue", before_s, after_s))
        return str(refused(login, Sign.CERTIFICATE, None, 1_000.0))

    assert "user 'site-1': its certificate has expired on 1970-01-01" in said(0, 999)
    assert "its certificate is not valid before 1970-01-02" in said(86_400, 99_999)
    assert "is signed by 'rogue'" in said(0, 9_999)


def test_a_missing_permission_is_named_and_nothing_else_is():
    missing = denied(PROBE, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "read", ["site-2.items"])
    assert isinstance(missing, AccessError)
    assert "user 'site-1' may not read topic 'site-2.items'" in str(missing)
    assert denied(PROBE, KafkaError(KafkaError._TIMED_OUT), "read", ["site-2.items"]) is None
    nobody = denied(msgspec.structs.replace(PROBE, user=""), KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED), "use")
    assert "user 'ANONYMOUS' may not use the cluster" in str(nobody)


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A port that says `answer` to every connection and closes it; None: closes it without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    one.recv(4096)
                    if answer:
                        one.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


HANDSHAKE = b"\0\0\0\1\0\x21\0\0\0\1\0\x05PLAIN"
CLOSED = b"\0\0\0\1\0\x22\0\0\0\0"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (len(HANDSHAKE).to_bytes(4, "big") + HANDSHAKE, Listener(False, ["PLAIN"])),
        (len(CLOSED).to_bytes(4, "big") + CLOSED, Listener(False, [])),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
        (b"\0\0\0\x0a\0\0", None),
        (None, None),
    ],
)
def test_a_probe_takes_only_kafka_for_kafka(answer, found):
    with listening(answer) as address:
        assert probe(f"nonsense,{address}") == found


def test_a_broker_that_is_away_is_no_refusal():
    with listening(None) as address:
        guard = Guard("kafka.cloud", {"bootstrap.servers": address})
        guard.note(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
        guard.raise_if_refused()


def test_a_refusal_that_no_second_client_sees_is_none(monkeypatch):
    monkeypatch.setattr("pipelines.transport.guard.CONFIRM_S", 0.3)
    with listening(None) as address:
        guard = Guard("kafka.cloud", {"bootstrap.servers": address})
        guard.note(KafkaError(KafkaError._AUTHENTICATION, "invalid credentials"))
        guard.raise_if_refused()


# Quotas.


def test_a_login_for_java_has_every_secret_escaped(tmp_path, authority):
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    text = quotas.properties(
        {
            "security.protocol": "sasl_ssl",
            "ssl.ca.location": str(tmp_path / "ca.crt"),
            "sasl.mechanism": "PLAIN",
            "sasl.username": "me",
            "sasl.password": 'a"b\\cé',
        }
    )
    found = dict(line.split("=", 1) for line in text.splitlines())
    assert found["security.protocol"] == "SASL_SSL"
    assert found["ssl.truststore.certificates"].startswith("-----BEGIN CERTIFICATE-----\\n")
    assert found["sasl.jaas.config"].endswith('username="me" password="a\\\\"b\\\\\\\\c\\u00e9";')


def test_quotas_by_hand_name_what_to_run():
    quota = quotas.Quota(in_bytes_per_s=5)
    assert quotas.by_hand("host:1", quotas.set_arguments("site-1", quota)) == (
        "kafka-configs.sh --bootstrap-server host:1 --command-config admin.properties --alter --entity-type users "
        "--entity-name site-1 --add-config producer_byte_rate=5"
    )
