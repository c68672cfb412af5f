"""`tidegate site`: the sites that may use the cloud's cluster, each with a login and permissions of its own.

Run by the cloud's operator; the pipeline file's `kafka.cloud` holds the operator's login.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml
from rich.console import Console
from rich.table import Table

from pipelines.cli.topics import layout_of
from pipelines.config import Pipeline, load
from pipelines.config.clusters import cluster, security
from pipelines.config.units import Size
from pipelines.core.topic_plan import Action
from pipelines.errors import ConfigError
from pipelines.transport import access, quotas, site_login
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import apply_tier
from schemas.topics import SITE_NAME, Tier

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Who may use the cloud's Kafka, and for what.")

EXIT_BY_HAND = 3
"""All is done but the quotas: Kafka's tool is not installed, and the command to run is printed."""

Name = Annotated[str, typer.Argument(help="The site's name: small letters, digits and hyphens.")]
File = Annotated[Path, typer.Argument(help="The cloud's pipeline file, with the operator's login in `kafka.cloud`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_FILE = Path("pipeline.yaml")


class Added(msgspec.Struct, frozen=True):
    """What `site add` did, and where it put what the site needs. No secret is in it."""

    site: str
    login: str
    """`mtls` or `sasl`."""
    files: list[str]
    made: bool
    """The login is new; otherwise it was there already."""
    permissions_added: int
    topics_created: list[str]
    pipeline_file: dict[str, Any]
    """What goes into the site's own pipeline file."""
    by_hand: str | None = None
    """The command that sets the quotas, where Kafka's tool is not installed."""
    serves: bool = True
    """The cloud's file names the site in `cloud.sites`."""


class Removed(msgspec.Struct, frozen=True):
    """What `site remove` took away."""

    site: str
    permissions: int
    passwords: int
    by_hand: str | None = None


@app.command("add")
def _add(
    name: Name,
    file: File = DEFAULT_FILE,
    out: Annotated[Path, typer.Option("--out", help="Folder for the site's certificate, key or password.")] = Path(),
    ca_dir: Annotated[
        Path | None,
        typer.Option("--ca-dir", help="Folder with ca.crt and ca.key, which sign sites; made where it has none."),
    ] = None,
    sasl: Annotated[bool, typer.Option("--sasl/--mtls", help="Log in by password (SCRAM) or by certificate.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="HOST:PORT by which the site reaches the cloud's Kafka.")
    ] = None,
    days: Annotated[float, typer.Option("--days", min=1, help="How long a new certificate is good.")] = 365,
    quota_in: Annotated[str | None, typer.Option("--quota-in", help="A second, from the site: 10MiB.")] = None,
    quota_out: Annotated[str | None, typer.Option("--quota-out", help="A second, to the site: 10MiB.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Make the certificate or password anew.")] = False,
    as_json: Json = False,
) -> None:
    """Give a site its topics, login, permissions and quotas on the cloud's Kafka. Safe to run again.

    Exit 3: all is done but the quotas, whose command is printed.
    """
    quota = quotas.Quota(_size("--quota-in", quota_in), _size("--quota-out", quota_out))
    pipeline, cloud = _cloud(name, file)
    section = pipeline.kafka.cloud
    if not sasl and ca_dir is None:
        raise ConfigError("a certificate needs an authority to sign it", remedy="give --ca-dir, or --sasl")
    if not sasl and section.tls is None:
        raise ConfigError("`kafka.cloud.tls` is not set: certificates need TLS", remedy="set it, or give --sasl")
    with Console(stderr=True).status(f"adding site '{name}'"):
        access.refuse_name(name, cloud)
        layout = msgspec.structs.replace(layout_of(pipeline), sites=[name])
        done = apply_tier(layout, Tier.CLOUD, cloud)
        granted = access.grant(cloud, name)
        trust = site_login.copy_trust(section.tls.ca if section.tls is not None else None, out)
        kafka: dict[str, Any] = {"bootstrap": address or cloud.bootstrap}
        if section.tls is not None:
            kafka["tls"] = {} if trust is None else {"ca": trust.name}
        if sasl:
            password, made = site_login.ensure_password(cloud, name, out, renew=renew)
            kafka["sasl"] = {"username": name, "password": {"file": password.name}}
            files = [password]
        else:
            certificate, key, made = site_login.ensure_certificate(name, ca_dir or out, out, days, renew=renew)
            kafka["tls"] |= {"certificate": certificate.name, "key": key.name}
            files = [certificate, key]
        by_hand = _quotas(pipeline, cloud, quotas.set_arguments(name, quota)) if quota.configs else None
    added = Added(
        site=name,
        login="sasl" if sasl else "mtls",
        files=[str(path) for path in (*files, *([trust] if trust is not None else []))],
        made=made,
        permissions_added=granted,
        topics_created=[change.name for change in done if change.action is Action.CREATE],
        pipeline_file={"site": name, "kafka": {"cloud": kafka}},
        by_hand=by_hand,
        serves=name in pipeline.cloud_sites,
    )
    if as_json:
        typer.echo(msgspec.json.encode(added).decode())
    else:
        _show(added, file)
    raise typer.Exit(EXIT_BY_HAND if by_hand else 0)


@app.command("list")
def _list(file: File = DEFAULT_FILE, as_json: Json = False) -> None:
    """Show the sites that have permissions. Exit 1 where one lacks some."""
    found = access.sites(_operated(load(file), alter=False))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("site", "login", "permissions"):
            table.add_column(heading, overflow="fold")
        for one in found:
            lacks = f"lacks {', '.join(one.missing)}" if one.missing else "all that a site has"
            table.add_row(one.site, ", ".join(one.mechanisms) or "certificate", lacks)
        Console().print(table if found else "no site has permissions here")
    raise typer.Exit(int(any(one.missing for one in found)))


@app.command("remove")
def _remove(name: Name, file: File = DEFAULT_FILE, as_json: Json = False) -> None:
    """Take a site's permissions, password and quotas away. Its topics, and what is in them, stay.

    Kafka goes on to know its certificate until that expires, and lets it do nothing.
    Exit 3: all is done but the quotas.
    """
    pipeline, cloud = _cloud(name, file)
    with Console(stderr=True).status(f"removing site '{name}'"):
        permissions = access.revoke(cloud, name)
        passwords = access.forget_passwords(cloud, name)
        by_hand = None
        if quotas.installed():
            quotas.remove(cloud.bootstrap, security(pipeline, Tier.CLOUD), name)
        else:
            by_hand = quotas.by_hand(cloud.bootstrap, quotas.remove_arguments(name))
    if as_json:
        typer.echo(msgspec.json.encode(Removed(name, permissions, passwords, by_hand)).decode())
    else:
        console = Console()
        console.print(f"site '{name}': {permissions} permissions and {passwords} passwords taken away; topics stay")
        if by_hand:
            console.print(f"if it had quotas, remove them: {by_hand}", soft_wrap=True, highlight=False)
    raise typer.Exit(EXIT_BY_HAND if by_hand else 0)


def _cloud(name: str, file: Path) -> tuple[Pipeline, KafkaCluster]:
    if not SITE_NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a site", remedy="use small letters, digits and hyphens, 63 at most")
    pipeline = load(file)
    return pipeline, _operated(pipeline, alter=True)


def _operated(pipeline: Pipeline, *, alter: bool) -> KafkaCluster:
    cloud = cluster(pipeline, Tier.CLOUD)
    cloud.check()
    access.refuse_stranger(cloud, alter=alter)
    return cloud


def _quotas(pipeline: Pipeline, cloud: KafkaCluster, arguments: list[str]) -> str | None:
    """Run Kafka's tool; the command to run where it is not installed."""
    if not quotas.installed():
        return quotas.by_hand(cloud.bootstrap, arguments)
    quotas.run_tool(cloud.bootstrap, security(pipeline, Tier.CLOUD), arguments)
    return None


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = int(Size.parse(text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if not size:
        raise ConfigError(f"{option}: nothing could pass", remedy="give more than 0, or `site remove`")
    return size


def _show(added: Added, file: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"site '{added.site}': {'a new' if added.made else 'its'} {added.login} login in {', '.join(added.files)}; "
        f"{added.permissions_added} permissions added"
    )
    console.print("put these files beside the site's pipeline file, and into that:", style="dim")
    typer.echo(yaml.safe_dump(added.pipeline_file, sort_keys=False, default_flow_style=False).rstrip())
    if not added.serves:
        console.print(f"add '{added.site}' to `cloud.sites` in {file} and start the cloud's workers again")
    if added.by_hand:
        console.print(f"Kafka's tool is not installed here; set the quotas with: {added.by_hand}")
