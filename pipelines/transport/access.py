"""What a site may do on the cloud's cluster, and writing that into Kafka as permissions (ACLs) and logins.

A site's user has the site's name, whether it logs in by certificate (its common name) or by password. The rules are
pure and name nothing that another site owns: site names hold no dot, so `<site>.` is a prefix of its own names alone,
and what ends in a site's name is given literally, since `uplink.site-1` is a prefix of `uplink.site-10`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from pipelines.errors import AccessError, ConfigError
from pipelines.transport.kafka import REQUEST_TIMEOUT_S, KafkaCluster
from pipelines.transport.kafka_read import READER_GROUP
from schemas.positions import owner_id
from schemas.topics import CONTROL, OFFLOADS, SiteTopics

Kind = Literal["topic", "group", "transactional_id"]
Operation = Literal["read", "write", "describe"]

SCRAM_ITERATIONS = 8192
RESERVED = frozenset({"admin", "broker", "kafka", "root", "cloud"})
"""Names that operators give to super users or to the cloud's own workers: a site of that name would be one."""

_MECHANISMS = {"SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512, "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256}


class Rule(msgspec.Struct, frozen=True, order=True):
    """One permission. Reading or writing includes describing."""

    kind: Kind
    name: str
    operation: Operation
    prefix: bool = False
    """`name` is what the names begin with."""

    def allows(self, kind: Kind, name: str, operation: Operation) -> bool:
        """Whether this rule allows an operation."""
        return (
            kind == self.kind
            and (name.startswith(self.name) if self.prefix else name == self.name)
            and operation in (self.operation, "describe")
        )

    def __str__(self) -> str:
        return f"{self.operation} {self.kind} {self.name}{'*' if self.prefix else ''}"


def site_rules(site: str) -> list[Rule]:
    """All that a site may do on the cloud's cluster: what its uplink and downlink need, and nothing else."""
    topics = SiteTopics(site)
    return [
        *(Rule("topic", name, "write") for name in OFFLOADS),
        Rule("topic", f"{site}.up.", "write", prefix=True),
        Rule("topic", topics.up_positions, "read"),
        Rule("topic", f"{site}.down.", "read", prefix=True),
        Rule("topic", CONTROL, "read"),
        Rule("transactional_id", f"uplink.{site}", "write"),
        Rule("transactional_id", owner_id(f"uplink.{site}"), "write"),
        Rule("group", f"{site}.", "read", prefix=True),
        Rule("group", READER_GROUP, "describe"),
    ]


class SiteAccess(msgspec.Struct, frozen=True):
    """How a site stands on the cloud's cluster."""

    site: str
    missing: list[str]
    """Permissions that a site has and this one lacks."""
    mechanisms: list[str]
    """Of its password; without any it logs in by certificate."""


def refuse_stranger(cluster: KafkaCluster, *, alter: bool) -> None:
    """Raise `AccessError` where our login may not see the permissions of others, or with `alter` change them.

    Ask this first: refused the requests below, confluent-kafka 2.16 crashes the process or finds nothing.
    """
    asked = cluster.ask(
        lambda admin: {
            "all": admin.describe_cluster(include_authorized_operations=True, request_timeout=REQUEST_TIMEOUT_S)
        }
    )
    allowed = asked["all"].authorized_operations or []
    needed = {AclOperation.DESCRIBE: "see", **({AclOperation.ALTER: "change"} if alter else {})}
    for operation, verb in needed.items():
        if operation not in allowed:
            user = cluster.user or "ANONYMOUS"
            raise AccessError(
                f"{cluster.name} at {cluster.bootstrap}: user '{user}' may not {verb} permissions",
                remedy=f"give the login of the cluster's operator in `{cluster.name}`",
            )


def refuse_name(site: str, cluster: KafkaCluster) -> None:
    """Raise `ConfigError` where a site of this name would be somebody else: the operator, say."""
    if site in RESERVED or site == cluster.user:
        raise ConfigError(
            f"a site cannot be called '{site}': its user would be one that may do more than a site",
            remedy="give the site another name",
        )
    foreign = sorted(_found(cluster, site) - set(site_rules(site)))
    if foreign:
        raise ConfigError(
            f"user '{site}' on {cluster.name} has permissions that no site has ({foreign[0]})",
            remedy="give the site another name, or take them away",
        )


def grant(cluster: KafkaCluster, site: str) -> int:
    """Give a site its permissions; how many it lacked. Raises `BrokerError`, `AccessError`."""
    missing = sorted(set(site_rules(site)) - _found(cluster, site))
    if missing:
        bindings = [_binding(site, rule) for rule in missing]
        cluster.ask(lambda admin: admin.create_acls(bindings, request_timeout=REQUEST_TIMEOUT_S))
        cluster.until("permissions", lambda: set(site_rules(site)) <= _found(cluster, site))
    return len(missing)


def revoke(cluster: KafkaCluster, site: str) -> int:
    """Take a site's permissions away; how many it had."""
    found = sorted(_found(cluster, site) & set(site_rules(site)))
    if found:
        filters = [_filter(site, rule) for rule in found]
        cluster.ask(lambda admin: admin.delete_acls(filters, request_timeout=REQUEST_TIMEOUT_S))
        cluster.until("the end of permissions", lambda: not set(site_rules(site)) & _found(cluster, site))
    return len(found)


def set_password(cluster: KafkaCluster, site: str, password: str, mechanism: str = "SCRAM-SHA-512") -> None:
    """Make the site's user, or give it another password."""
    info = ScramCredentialInfo(_MECHANISMS[mechanism], SCRAM_ITERATIONS)
    alteration = UserScramCredentialUpsertion(site, info, password.encode())
    cluster.ask(lambda admin: admin.alter_user_scram_credentials([alteration], request_timeout=REQUEST_TIMEOUT_S))
    cluster.until(f"user '{site}'", lambda: mechanism in mechanisms(cluster).get(site, []))


def forget_passwords(cluster: KafkaCluster, site: str) -> int:
    """Remove the site's user; how many passwords it had."""
    known = mechanisms(cluster).get(site, [])
    if known:
        alterations = [UserScramCredentialDeletion(site, _MECHANISMS[name]) for name in known]
        cluster.ask(lambda admin: admin.alter_user_scram_credentials(alterations, request_timeout=REQUEST_TIMEOUT_S))
    return len(known)


def mechanisms(cluster: KafkaCluster) -> dict[str, list[str]]:
    """Users that have a password, with its mechanisms."""
    names = {mechanism: name for name, mechanism in _MECHANISMS.items()}
    asked = cluster.ask(lambda admin: {"all": admin.describe_user_scram_credentials(request_timeout=REQUEST_TIMEOUT_S)})
    return {
        user: sorted(names[info.mechanism] for info in found.scram_credential_infos if info.mechanism in names)
        for user, found in asked["all"].items()
    }


def sites(cluster: KafkaCluster) -> list[SiteAccess]:
    """All sites that have a permission of their own: who may write as `uplink.<site>` and has that name."""
    passwords = mechanisms(cluster)
    found = []
    for binding in _bindings(cluster, None):
        site = binding.principal.removeprefix("User:")
        if binding.restype is ResourceType.TRANSACTIONAL_ID and binding.name == f"uplink.{site}":
            found.append(site)
    return [
        SiteAccess(
            site,
            [str(rule) for rule in sorted(set(site_rules(site)) - _found(cluster, site))],
            passwords.get(site, []),
        )
        for site in sorted(set(found))
    ]


_KINDS: dict[Kind, ResourceType] = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional_id": ResourceType.TRANSACTIONAL_ID,
}
_OPERATIONS: dict[Operation, AclOperation] = {
    "read": AclOperation.READ,
    "write": AclOperation.WRITE,
    "describe": AclOperation.DESCRIBE,
}


def _binding(site: str, rule: Rule) -> AclBinding:
    return AclBinding(
        _KINDS[rule.kind],
        rule.name,
        ResourcePatternType.PREFIXED if rule.prefix else ResourcePatternType.LITERAL,
        f"User:{site}",
        "*",
        _OPERATIONS[rule.operation],
        AclPermissionType.ALLOW,
    )


def _filter(site: str, rule: Rule) -> AclBindingFilter:
    made = _binding(site, rule)
    pattern = made.resource_pattern_type
    return AclBindingFilter(
        made.restype, made.name, pattern, made.principal, made.host, made.operation, made.permission_type
    )


def _bindings(cluster: KafkaCluster, site: str | None) -> Sequence[AclBinding]:
    wanted = AclBindingFilter(
        ResourceType.ANY,
        None,
        ResourcePatternType.ANY,
        None if site is None else f"User:{site}",
        None,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    asked = cluster.ask(lambda admin: {"all": admin.describe_acls(wanted, request_timeout=REQUEST_TIMEOUT_S)})
    found: Sequence[AclBinding] = asked["all"]
    return found


def _found(cluster: KafkaCluster, site: str) -> set[Rule]:
    return set(_rules(_bindings(cluster, site)))


def _rules(bindings: Iterable[AclBinding]) -> Iterable[Rule]:
    kinds = {value: kind for kind, value in _KINDS.items()}
    operations = {value: operation for operation, value in _OPERATIONS.items()}
    for one in bindings:
        if one.permission_type is not AclPermissionType.ALLOW:
            continue
        kind = kinds.get(one.restype, one.restype.name.lower())
        operation = operations.get(one.operation, one.operation.name.lower())
        yield Rule(kind, one.name, operation, one.resource_pattern_type is ResourcePatternType.PREFIXED)
