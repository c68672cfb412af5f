"""Logins and permissions on a real, secured Kafka: what a site may do, and how each refusal is told.

A refusal is awaited, never timed out: `NEVER_S` only bounds a machine that is stuck.
"""

import datetime
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest
import yaml
from typer.testing import CliRunner, Result

from edge_workers.downlink import downlink
from edge_workers.uplink import uplink
from pipelines.cli.site import app
from pipelines.cli.topics import layout_of
from pipelines.config import load
from pipelines.config.clusters import ENVIRONMENT, cluster, security
from pipelines.errors import AccessError, ConfigError
from pipelines.transport import access, quotas
from pipelines.transport.access import Rule, site_rules
from pipelines.transport.base import OutRecord, Record
from pipelines.transport.broker import Broker, start_owned
from pipelines.transport.certificates import Authority, Pair, ensure_authority, new_authority
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import apply_tier
from schemas import headers, wire
from schemas.answers import Answer, AnswerBatch, AnswerKind
from schemas.control import Credit
from schemas.headers import Header, Origin, Params
from schemas.positions import owner_id
from schemas.topics import AGGREGATES, CONTROL, OFFLOADS, SiteTopics, Tier

pytestmark = pytest.mark.kafka

NEVER_S = 60
NOW = datetime.datetime.now(datetime.UTC)
HOUR_US = 3_600_000_000


class Nobody:
    def assigned(self, partitions: Any) -> None: ...
    def revoked(self, partitions: Any) -> None: ...
    def lost(self, partitions: Any) -> None: ...


class Site(NamedTuple):
    name: str
    topics: SiteTopics
    file: Path
    password: str


class Cloud:
    """A secured Kafka, its operator, and two sites that were added to it."""

    def __init__(self, broker: Broker, edge: str, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        own = broker.security_dir
        self.ca = own / "ca.crt"
        self.authority: Authority = ensure_authority(own, "", NOW)
        self.file = self._pipeline(
            "cloud",
            cloud={
                "bootstrap": broker.bootstrap,
                "tls": {"ca": str(self.ca), "certificate": str(own / "admin.crt"), "key": str(own / "admin.key")},
            },
        )
        self._edge = edge
        self.admin = cluster(load(self.file), Tier.CLOUD)
        self.north = self._site("--ca-dir", str(own))
        self.south = self._site("--sasl", "--address", str(broker.scram_bootstrap))

    def _pipeline(self, name: str, site: str = "cloud-1", **kafka: Any) -> Path:
        (self.folder / name).mkdir(exist_ok=True, parents=True)
        file = self.folder / name / "pipeline.yaml"
        content = {"name": name, "site": site, "source": {"path": "."}, "partitions": 2, "kafka": kafka}
        file.write_text(yaml.safe_dump(content), "utf-8")
        return file

    def site(self, *arguments: object) -> Result:
        """`tidegate site ARGUMENTS`."""
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})

    def _site(self, *options: str) -> Site:
        name = f"site-{uuid4().hex[:8]}"
        out = self.folder / name
        done = self.site("add", name, self.file, "--out", out, "--json", *options)
        assert done.exit_code == 0, done
        told = msgspec.json.decode(done.stdout)
        assert told["made"]
        assert told["permissions_added"] == len(site_rules(name))
        file = self._pipeline(name, name, cloud=told["pipeline_file"]["kafka"]["cloud"], edge={"bootstrap": self._edge})
        password = out / f"{name}.password"
        return Site(name, SiteTopics(name), file, password.read_text().strip() if password.exists() else "")

    def as_site(self, site: Site) -> KafkaCluster:
        return cluster(load(site.file), Tier.CLOUD)

    def by_certificate(self, pair: Pair | None, ca: Path | None = None) -> KafkaCluster:
        """Past the check of the files, which would refuse what a broker shall."""
        options = {"security.protocol": "ssl", "ssl.ca.location": str(ca or self.ca)}
        if pair is not None:
            options |= {"ssl.certificate.pem": pair.certificate.decode(), "ssl.key.pem": pair.key.decode()}
        return KafkaCluster("kafka.cloud", self.broker.bootstrap, options)

    def by_password(self, user: str, password: str, mechanism: str = "SCRAM-SHA-512") -> KafkaCluster:
        options = {
            "security.protocol": "sasl_ssl",
            "ssl.ca.location": str(self.ca),
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": password,
        }
        return KafkaCluster("kafka.cloud", str(self.broker.scram_bootstrap), options)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Cloud]:
    patch = pytest.MonkeyPatch()
    for variable in ENVIRONMENT.values():
        patch.delenv(variable, raising=False)
    folder = tmp_path_factory.mktemp("secured")
    with start_owned(folder / "kafka", name="secured", secured=True) as running, patch.context():
        one = Cloud(running, broker.bootstrap, folder)
        with closing(one.admin):
            yield one


def refused(call: Callable[[], object]) -> str:
    """The line of a refusal."""
    with pytest.raises(AccessError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    assert raised.value.exit_code == 2
    assert "kafka.cloud at 127.0.0.1:" in line
    return line


# Who is not let in.


def rogue() -> Authority:
    return Authority(new_authority("rogue", NOW))


def _short(cloud: Cloud) -> KafkaCluster:
    """Its certificate ends while it runs: good for the client, not for the broker."""
    return cloud.by_certificate(cloud.authority.issue("gone", NOW, days=-2))


LOGINS: dict[str, tuple[Callable[[Cloud], KafkaCluster], str]] = {
    "expired certificate": (
        _short,
        f"refuses user 'gone': its certificate has expired on {(NOW - datetime.timedelta(days=2)).date()}",
    ),
    "certificate of tomorrow": (
        lambda c: c.by_certificate(c.authority.issue("early", NOW + datetime.timedelta(days=2))),
        "refuses user 'early': its certificate is not valid before",
    ),
    "rogue authority": (
        lambda c: c.by_certificate(rogue().issue(c.north.name, NOW)),
        "its certificate is signed by 'rogue', an authority that the broker does not know",
    ),
    "no certificate": (lambda c: c.by_certificate(None), "no certificate was sent and the broker asks for one"),
    "wrong password": (
        lambda c: c.by_password(c.south.name, "guess"),
        "the password is wrong, or there is no such user for SCRAM-SHA-512",
    ),
    "unknown user": (lambda c: c.by_password("nobody", "guess"), "refuses user 'nobody': the password is wrong"),
    "mechanism": (
        lambda c: c.by_password(c.south.name, c.south.password, "PLAIN"),
        "the broker does not take PLAIN; it takes SCRAM-SHA-512, SCRAM-SHA-256: correct `kafka.cloud.sasl.mechanism`",
    ),
    "no TLS": (
        lambda c: KafkaCluster("kafka.cloud", c.broker.bootstrap),
        "the listener there speaks TLS, we do not: set `kafka.cloud.tls`",
    ),
    "no login": (
        lambda c: KafkaCluster(
            "kafka.cloud",
            str(c.broker.scram_bootstrap),
            {"security.protocol": "ssl", "ssl.ca.location": str(c.ca)},
        ),
        "the listener there asks for user and password (SCRAM-SHA-512, SCRAM-SHA-256)",
    ),
}


@pytest.mark.parametrize("case", LOGINS)
def test_a_refused_login_is_named_at_once(cloud: Cloud, case: str) -> None:
    make, said = LOGINS[case]
    with closing(make(cloud)) as one:
        assert said in refused(lambda: one.check(NEVER_S))


def test_a_broker_that_is_not_trusted_is_named(cloud: Cloud, tmp_path: Path) -> None:
    other = tmp_path / "ca.crt"
    other.write_bytes(new_authority("other", NOW).certificate)
    with closing(cloud.by_certificate(None, other)) as one:
        line = refused(lambda: one.check(NEVER_S))
    assert (
        "is not trusted: its certificate is not signed by an authority that we know: set `kafka.cloud.tls.ca`" in line
    )


def test_tls_towards_a_plain_listener_is_named(cloud: Cloud, broker: Broker) -> None:
    options = {"security.protocol": "ssl", "ssl.ca.location": str(cloud.ca)}
    with closing(KafkaCluster("kafka.cloud", broker.bootstrap, options)) as one:
        assert "the listener there does not speak TLS" in refused(lambda: one.check(NEVER_S))


def test_a_writer_is_refused_as_it_starts(cloud: Cloud) -> None:
    with closing(cloud.by_password(cloud.south.name, "guess")) as one:
        assert "the password is wrong" in refused(one.transactions(f"uplink.{cloud.south.name}").start)


def test_a_reader_is_refused_as_it_polls(cloud: Cloud) -> None:
    with closing(cloud.by_certificate(rogue().issue("x", NOW)).reader({(CONTROL, 0): 0})) as reader:
        assert "'rogue'" in refused(lambda: until(lambda: reader.poll(1, 0.1)))


def until(look: Callable[[], Any]) -> Any:
    """What is looked for, as soon as it is there."""
    until_s = time.monotonic() + NEVER_S
    while time.monotonic() < until_s:
        found = look()
        if found:
            return found
    raise AssertionError("it never came")


def test_who_only_looks_is_refused_too(cloud: Cloud) -> None:
    with closing(cloud.by_certificate(rogue().issue("x", NOW))) as one, closing(one.look()) as look:
        assert "'rogue'" in refused(look.known)


# What a site may not do.


def _write(one: KafkaCluster, me: Site, topic: str) -> None:
    with closing(one.transactions(f"uplink.{me.name}")) as writer:
        writer.start()
        writer.write([OutRecord(me.topics.up_results, b"x", partition=0), OutRecord(topic, b"x", partition=0)])


def _read(one: KafkaCluster, topic: str) -> None:
    with closing(one.reader({(topic, 0): 0})) as reader:
        until(lambda: reader.poll(1, 0.1))


def _join(one: KafkaCluster, group: str, topic: str) -> None:
    with closing(one.group_reader(group, [topic], Nobody())) as reader:
        until(lambda: reader.poll(1, 0.1))


REFUSALS: dict[str, tuple[Callable[[KafkaCluster, Site, SiteTopics], object], str]] = {
    "see its topics": (lambda one, me, of: one.partitions([of.down_answers]), "may not see topic '{0}.down.answers'"),
    "read its answers": (lambda one, me, of: list(one.read_all([of.down_answers])), "topic '{0}.down.answers'"),
    "read its results": (lambda one, me, of: list(one.read_all([of.up_results])), "topic '{0}.up.results'"),
    "write its results": (lambda one, me, of: _write(one, me, of.up_results), "may not write topic '{0}.up.results'"),
    "write its answers": (
        lambda one, me, of: _write(one, me, of.down_answers),
        "may not write topic '{0}.down.answers'",
    ),
    "write own answers": (lambda one, me, of: _write(one, me, me.topics.down_answers), "may not write topic '{1}.down"),
    "write credit": (lambda one, me, of: _write(one, me, CONTROL), "may not write topic 'control'"),
    "see aggregates": (lambda one, me, of: one.partitions([AGGREGATES]), "may not see topic 'aggregates'"),
    "write under its id": (
        lambda one, me, of: one.transactions(f"uplink.{of.site}").start(),
        "may not write under transactional id 'uplink.{0}'",
    ),
    "claim its id": (
        lambda one, me, of: one.transactions(owner_id(f"uplink.{of.site}")).start(),
        "may not write under transactional id 'uplink.{0}.owner'",
    ),
    "join its group": (
        lambda one, me, of: _join(one, f"{of.site}.own", me.topics.down_answers),
        "may not use group '{0}.own'",
    ),
    "join the cloud's group": (lambda one, me, of: _join(one, "cloud", me.topics.down_answers), "use group 'cloud'"),
    "read others' items": (
        lambda one, me, of: _read(one, OFFLOADS[0]),
        "may not read topic 'offload.p0'",
    ),
    "ask of its group": (
        lambda one, me, of: one.committed(f"{of.site}.own", [me.topics.down_answers]),
        "may not use group '{0}.own'",
    ),
    "describe its group": (lambda one, me, of: one.assigned_partitions(f"{of.site}.own"), "group '{0}.own'"),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("login", ["certificate", "password"])
def test_a_site_may_do_nothing_with_what_is_another_s(cloud: Cloud, case: str, login: str) -> None:
    me, other = (cloud.north, cloud.south) if login == "certificate" else (cloud.south, cloud.north)
    attempt, said = REFUSALS[case]
    with closing(cloud.as_site(me)) as one:
        line = refused(lambda: attempt(one, me, other.topics))
    assert said.format(other.name, me.name) in line
    assert f"user '{me.name}'" in line
    assert "tidegate site add" in line


def test_a_site_s_name_that_begins_another_s_opens_nothing(cloud: Cloud) -> None:
    longer = SiteTopics(f"{cloud.north.name}0")
    with closing(cloud.as_site(cloud.north)) as one:
        assert f"'uplink.{longer.site}'" in refused(one.transactions(f"uplink.{longer.site}").start)
        assert f"'{longer.up_results}'" in refused(lambda: one.partitions([longer.up_results]))


# What a site may do: run.


@contextmanager
def working(cloud: Cloud, site: Site) -> Iterator[tuple[KafkaCluster, list["Future[None]"]]]:
    """A real uplink and downlink of a site, with its own login and nothing more; its edge, and what they raise."""
    pipeline = load(site.file)
    edge, upstream = cluster(pipeline, Tier.EDGE), cluster(pipeline, Tier.CLOUD)
    apply_tier(layout_of(pipeline), Tier.EDGE, edge)
    stop = threading.Event()
    both = [make(site=site.name, edge=edge, cloud=upstream, instance="1", stop=stop) for make in (uplink, downlink)]
    with closing(edge), closing(upstream), ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(one.run) for one in both]
        try:
            yield edge, runs
        finally:
            stop.set()


def come(one: KafkaCluster, topic: str, runs: list["Future[None]"]) -> Record:
    """The first record of a topic; a forwarder's error where one ends before."""

    def look() -> list[Record]:
        for run in runs:
            if run.done():
                run.result()
        return list(one.read_all([topic]))

    found: list[Record] = until(look)
    return found[0]


def send(one: KafkaCluster, site: Site, records: list[OutRecord]) -> None:
    with closing(one.transactions(f"test.{site.name}.{uuid4().hex}")) as writer:
        writer.start()
        writer.write(records)


@pytest.mark.parametrize("login", ["certificate", "password"])
def test_uplink_and_downlink_run_on_a_site_s_own_rights(cloud: Cloud, login: str) -> None:
    site = cloud.north if login == "certificate" else cloud.south
    topics, now_us = site.topics, time.time_ns() // 1000
    header = Header(
        version=headers.VERSION,
        stream="cam-1",
        epoch=1,
        first_seq=0,
        count=1,
        capture_us=now_us,
        deadline_us=now_us + HOUR_US,
        priority=1,
        codec="raw",
        params=Params(shape=(1, 1)),
    )
    item = OutRecord(topics.uplink(1), site.name.encode(), b"cam-1", 1, headers.pair("image/raw", header))
    answer = Answer("cam-1", 1, 0, Origin(1, 1, 0), AnswerKind.ANSWERED, "7", 0.9, "m")
    with working(cloud, site) as (edge, runs):
        send(edge, site, [item, OutRecord(topics.results, b"result", partition=0)])
        assert come(cloud.admin, topics.up_results, runs).value() == b"result"
        offered = [record for record in cloud.admin.read_all([OFFLOADS[1]]) if record.value() == site.name.encode()]
        assert [headers.find(record.headers()).extra.site for record in offered] == [site.name]
        batch = AnswerBatch(wire.VERSION, site.name, [answer])
        credit = Credit(site.name, now_us, 2_000, "cloud-0")
        send(
            cloud.admin,
            site,
            [
                OutRecord(topics.down_answers, wire.encode(batch), partition=1),
                OutRecord(CONTROL, wire.encode(credit), site.name.encode(), 0),
            ],
        )
        assert wire.decode_answers(come(edge, topics.answers, runs).value()) == batch
        assert wire.decode_credit(come(edge, topics.control, runs).value()) == credit
        assert not any(run.done() for run in runs)


def test_a_site_that_is_removed_stops_at_once(cloud: Cloud) -> None:
    site = cloud._site("--sasl", "--address", str(cloud.broker.scram_bootstrap))
    with working(cloud, site) as (edge, (up, down)):
        send(edge, site, [OutRecord(site.topics.results, b"first", partition=0)])
        come(cloud.admin, site.topics.up_results, [up, down])
        assert cloud.site("remove", site.name, cloud.file, "--json").exit_code == 0
        send(edge, site, [OutRecord(site.topics.results, b"second", partition=0)])
        error = up.exception(NEVER_S)
        assert isinstance(error, AccessError)
        assert f"user '{site.name}' may not write" in str(error)
        assert isinstance(down.exception(NEVER_S), AccessError)
    assert [r.value() for r in cloud.admin.read_all([site.topics.up_results])] == [b"first"]
    with closing(cloud.as_site(site)) as one:
        assert "there is no such user" in refused(lambda: one.check(NEVER_S))


def test_a_worker_ends_with_one_line_and_no_secret(cloud: Cloud, user: Any) -> None:
    wrong = "s3cret-that-nobody-may-see"
    site = cloud.south
    content = yaml.safe_load(site.file.read_text())
    content["kafka"]["cloud"] |= {
        "sasl": {"username": site.name, "password": {"env": "CLOUD_PASSWORD"}},
        "tls": {"ca": str(cloud.ca)},
    }
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(content))
    done = user.run("uplink", CLOUD_PASSWORD=wrong, TIDEGATE_LOG="debug")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: kafka.cloud at {cloud.broker.scram_bootstrap} refuses user '{site.name}': the pass")
    assert wrong not in done.stderr + done.stdout
    missing = user.run("uplink")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "`kafka.cloud.sasl.password`: the environment variable CLOUD_PASSWORD is not set" in missing.stderr


# The operator's side.


def test_adding_a_site_again_changes_nothing(cloud: Cloud) -> None:
    for site, options in (
        (cloud.north, ["--ca-dir", cloud.broker.security_dir]),
        (cloud.south, ["--sasl", "--address", cloud.broker.scram_bootstrap]),
    ):
        folder = site.file.parent
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".yaml"}
        done = cloud.site("add", site.name, cloud.file, "--out", folder, "--json", *options)
        told = msgspec.json.decode(done.stdout)
        assert (told["made"], told["permissions_added"], told["topics_created"]) == (False, 0, [])
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".yaml"} == before
        secret = [path for path in folder.iterdir() if path.suffix in (".key", ".password")]
        assert [path.stat().st_mode & 0o777 for path in secret] == [0o600]
        assert site.password not in done.output or not site.password


def test_an_exporter_at_a_site_leaves_out_what_its_login_may_not_see(cloud: Cloud) -> None:
    down = cloud.north.topics.down_answers
    with closing(cloud.as_site(cloud.north).look()) as look:
        assert look.retentions([CONTROL, down]) == {}
    with closing(cloud.admin.look()) as look:
        assert look.retentions([CONTROL, down]) == {CONTROL: math.inf, down: 86_400.0}


def test_a_site_that_was_added_before_it_needed_a_permission_gets_it(cloud: Cloud) -> None:
    site, lacking = cloud.north, Rule("transactional_id", owner_id(f"uplink.{cloud.north.name}"), "write")
    cloud.admin.ask(lambda admin: admin.delete_acls([access._filter(site.name, lacking)]))
    until(lambda: lacking not in access._found(cloud.admin, site.name))
    with working(cloud, site) as (_, (up, _)):
        error = up.exception(NEVER_S)
    assert isinstance(error, AccessError)
    assert f"user '{site.name}' may not write under transactional id '{lacking.name}'" in str(error)
    listed = cloud.site("list", cloud.file, "--json")
    assert listed.exit_code == 1
    assert {"site": site.name, "missing": [str(lacking)], "mechanisms": []} in msgspec.json.decode(listed.stdout)
    own = ["--ca-dir", cloud.broker.security_dir, "--out", site.file.parent]
    told = msgspec.json.decode(cloud.site("add", site.name, cloud.file, "--json", *own).stdout)
    assert (told["made"], told["permissions_added"]) == (False, 1)


def test_sites_are_listed_with_what_they_lack(cloud: Cloud) -> None:
    found = {one["site"]: one for one in msgspec.json.decode(cloud.site("list", cloud.file, "--json").stdout)}
    assert found[cloud.north.name] == {"site": cloud.north.name, "missing": [], "mechanisms": []}
    assert found[cloud.south.name]["mechanisms"] == ["SCRAM-SHA-512"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["admin", "--sasl"], "a site cannot be called 'admin'"),
        (["Bad", "--sasl"], "'Bad' is no name for a site"),
        (["new"], "a certificate needs an authority to sign it: give --ca-dir, or --sasl"),
        (["new", "--sasl", "--quota-in", "5"], "--quota-in: '5' is not a size"),
    ],
)
def test_what_cannot_be_added_is_refused(cloud: Cloud, arguments: list[str], said: str, tmp_path: Path) -> None:
    name, *options = arguments
    done = cloud.site("add", name, cloud.file, "--out", tmp_path, *options)
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_password_that_nobody_has_is_not_replaced_unasked(cloud: Cloud, tmp_path: Path) -> None:
    done = cloud.site("add", cloud.south.name, cloud.file, "--out", tmp_path, "--sasl")
    assert "give it a new password with --renew" in str(done.exception)


def test_a_site_may_not_administer(cloud: Cloud, tmp_path: Path) -> None:
    done = cloud.site("list", cloud.north.file)
    assert isinstance(done.exception, AccessError)
    assert f"user '{cloud.north.name}' may not see permissions" in str(done.exception)


def test_quotas_are_set_and_removed(cloud: Cloud) -> None:
    site = cloud.north
    options = security(load(cloud.file), Tier.CLOUD)

    def shown() -> str:
        return quotas.run_tool(cloud.broker.bootstrap, options, quotas.show_arguments(site.name))

    done = cloud.site(
        "add", site.name, cloud.file, "--out", site.file.parent, "--ca-dir", cloud.broker.security_dir,
        "--quota-in", "1MiB",
    )  # fmt: skip
    assert done.exit_code == 0, done
    assert "producer_byte_rate=1048576.0" in shown()
    quotas.remove(cloud.broker.bootstrap, options, site.name)
    assert "producer_byte_rate" not in shown()
