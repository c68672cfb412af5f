"""The pipeline file, key by key. `tidegate check --schema` prints it as a JSON Schema for editors."""

import difflib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipelines.config.security import Sasl, Secret, Tls, why_not
from pipelines.config.units import Duration, Rate, parse_listen
from pipelines.core.topic_plan import why_not_config
from pipelines.models.release import ModelInput
from schemas.topics import SITE_NAME, SiteTopics, topic_kinds


def _duration(text: str) -> Any:
    return msgspec.field(default_factory=lambda: Duration.parse(text))


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file: frozen, and a key that is not known is refused."""


class KafkaCluster(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cluster. Without `bootstrap`, `tidegate run` runs an embedded Kafka for it."""

    bootstrap: str | None = None
    """`host:port`, several with commas."""
    tls: Tls | None = None
    """Encrypt, and show a certificate where one is given; `{}` trusts what this system trusts."""
    sasl: Sasl | None = None
    """Log in with user and password."""
    librdkafka: dict[str, str | int | float | bool | Secret] = {}
    """Raw client keys, passed on as they are (time-outs, `group.protocol`); secrets as in `sasl`."""

    def __post_init__(self) -> None:
        problem = why_not(self.tls, self.sasl, self.librdkafka)
        if problem:
            raise ValueError(problem)


class Kafka(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The two clusters. Equal addresses make both tiers share one."""

    edge: KafkaCluster = KafkaCluster()
    cloud: KafkaCluster = KafkaCluster()


class Source(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where items come from."""

    path: str
    """Of the folder or archive, relative to the pipeline file."""
    type: str = "images"
    """`images` (a folder), `idx` (an archive as MNIST has), one of yours by its entry point, or `module:name`."""
    streams: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """Cameras to play: item i goes to camera i modulo streams."""
    rate: Rate = msgspec.field(default_factory=Rate)
    """Of each stream: `10/s`, `as recorded`, or `as fast as possible`."""
    loop: Annotated[int, Meta(ge=0)] = 1
    """Times to play the source; 0 is without end."""
    options: dict[str, Any] = {}
    """For a source of yours."""


class Encode(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How frames are prepared and encoded."""

    codec: str = "jpeg"
    """`jpeg`, `raw` (tiny images), or one of yours. JPEG files that need no change travel as they are."""
    quality: Annotated[int, Meta(ge=1, le=100)] = 80
    resize: tuple[int, int] | None = None
    """Width and height in pixels."""
    grey: bool = False


class Model(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model and how to feed it."""

    model: str | None = None
    """`builtin:digits-small`, `builtin:digits-large`, or the path of an ONNX file, relative to the pipeline file."""
    labels: str | list[str] = []
    """Class names, or the path of a file with one a line."""
    input: ModelInput | None = None
    """What the file itself does not say: layout, size, scale, mean, std."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 1


class EdgeTier(Model, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The edge workers."""

    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    commit_interval: Duration = _duration("50ms")


class CloudTier(Model, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cloud workers. Without a model nothing can be escalated."""

    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    commit_interval: Duration = _duration("50ms")
    sites: list[str] = []
    """Sites that this cloud serves; the file's own `site` where empty."""


class Routing(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where each item is processed."""

    policy: str = "edge_only"
    """`edge_only`, `cloud_only`, `threshold`, one of yours by its entry point, or `module:name`."""
    options: dict[str, Any] = {}
    """Of the policy. `threshold` takes `threshold`; without it the edge model's own calibrated one is used."""


class Windows(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Event-time windows over the settled results."""

    size: Duration = _duration("10s")
    lateness: Duration = _duration("10s")
    """How long after its end a window is still called open."""


class Topics(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the topics are kept. What follows from what a topic is for stands in `pipelines.core.topic_plan`."""

    replication: Annotated[int, Meta(ge=1, le=32_767)] | None = None
    """Copies of each partition; the cluster's own default where it is not given."""
    min_insync: Annotated[int, Meta(ge=1, le=32_767)] | None = None
    """Copies that a write waits for; likewise."""
    configs: dict[str, dict[str, str | int | float | bool]] = {}
    """By kind of topic (`items`, `uplink`, ...): Kafka's own settings of it."""

    def __post_init__(self) -> None:
        if self.replication is not None and self.min_insync is not None and self.min_insync > self.replication:
            raise ValueError("`topics.min_insync` is larger than `topics.replication`: nothing could ever be written")
        for kind in sorted(self.configs.keys() - {*topic_kinds()}):
            near = difflib.get_close_matches(kind, topic_kinds(), n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(topic_kinds())}"
            raise ValueError(f"`topics.configs.{kind}` is no kind of topic: {remedy}")

    @property
    def raw(self) -> dict[str, dict[str, str]]:
        """The settings as Kafka writes them."""
        return {
            kind: {
                name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in configs.items()
            }
            for kind, configs in self.configs.items()
        }


class Metrics(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each process exports."""

    listen: str | None = None
    """`host:port` of `/metrics`, `/healthz` and `/livez`; more workers on one machine take the ports after it."""

    def __post_init__(self) -> None:
        if self.listen is not None:
            parse_listen(self.listen)


class Pipeline(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    name: str
    """Small letters, digits and hyphens. Embedded data is kept under it."""
    source: Source
    site: str = "site-1"
    """Small letters, digits and hyphens. It becomes part of topic names, and fixes them for good."""
    encode: Encode = Encode()
    deadline: Duration = _duration("10s")
    """From capture on. Past it an answer is of no use: the edge's own stands, or the item is `expired`."""
    priority: Annotated[int, Meta(ge=0, le=2)] = 1
    """0 travels first."""
    edge: EdgeTier = msgspec.field(default_factory=EdgeTier)
    cloud: CloudTier = msgspec.field(default_factory=CloudTier)
    routing: Routing = Routing()
    windows: Windows = msgspec.field(default_factory=Windows)
    kafka: Kafka = Kafka()
    partitions: Annotated[int, Meta(ge=1, le=1000)] = 6
    """Of every keyed topic; the ceiling on workers of a group. Fixed when the pipeline is created."""
    retention: Duration = _duration("24h")
    outage_budget: Duration = _duration("1h")
    """The longest outage that must lose nothing. A shorter retention is refused."""
    topic_settings: Topics = msgspec.field(name="topics", default_factory=Topics)
    metrics: Metrics = Metrics()

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("site", self.site), *(("cloud.sites", s) for s in self.cloud.sites)):
            if not SITE_NAME.fullmatch(value):
                raise ValueError(f"`{key}: {value}` may have small letters, digits and hyphens only, 63 at most")
        for key, length in (("deadline", self.deadline), ("windows.size", self.windows.size)):
            if not length:
                raise ValueError(f"`{key}` must be longer than nothing: write it as `5s`")
        if self.retention < self.outage_budget:
            raise ValueError(
                "`retention` is shorter than `outage_budget`: unread records would be removed in an outage"
            )
        for kind, configs in self.topic_settings.raw.items():
            for key, setting in configs.items():
                if problem := why_not_config(kind, key, setting, self.outage_budget.ms):
                    raise ValueError(problem)
        if self.encode.resize is not None and not all(1 <= side <= 16_384 for side in self.encode.resize):
            raise ValueError("`encode.resize` takes width and height from 1 to 16384 pixels")

    @property
    def topics(self) -> SiteTopics:
        """Names of this site's topics and groups."""
        return SiteTopics(self.site)

    @property
    def cloud_sites(self) -> list[str]:
        """Sites that the cloud workers of this file serve."""
        return self.cloud.sites or [self.site]
