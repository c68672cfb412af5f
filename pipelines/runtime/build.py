"""From a pipeline file to the objects that both tiers' workers run on. Whatever does not fit is a `UserError`."""

from pipelines.config.pipeline import Model, Pipeline
from pipelines.errors import ConfigError
from pipelines.models.release import Release, load_release
from pipelines.routing.base import Policy
from pipelines.routing.find import build_policy as policy_by_name
from pipelines.runtime.inference import ModelRunner
from schemas.topics import Tier


def release_of(pipeline: Pipeline, tier: Tier) -> Release | None:
    """The model of a tier as the file names it, or None where it names none. Raises `ModelError`."""
    section: Model = getattr(pipeline, tier)
    if section.model is None:
        return None
    return load_release(section.model, labels=tuple(section.labels), given=section.input)


def build_runner(pipeline: Pipeline, tier: Tier) -> ModelRunner:
    """The loaded model of a tier. Raises `ConfigError` where the file names none, `ModelError`."""
    release = release_of(pipeline, tier)
    if release is None:
        raise ConfigError(f"`{tier}.model` is not set", remedy="name an ONNX file, or builtin:digits-small")
    return ModelRunner(release, threads=getattr(pipeline, tier).threads)


def build_policy(pipeline: Pipeline) -> Policy:
    """The router's policy. `threshold` without its option takes the calibrated one from the edge model's card."""
    options = dict(pipeline.routing.options)
    if pipeline.routing.policy == "threshold" and "threshold" not in options:
        release = release_of(pipeline, Tier.EDGE)
        if release is None or release.card.threshold is None:
            raise ConfigError(
                "`routing.options.threshold` is not set, and the edge's model has no card with a calibrated one",
                remedy="set it, say 0.8",
            )
        options["threshold"] = release.card.threshold
    policy = policy_by_name(pipeline.routing.policy, options)
    if pipeline.cloud.model is None and pipeline.routing.policy in ("threshold", "cloud_only"):
        raise ConfigError(
            f"policy '{pipeline.routing.policy}' sends items to the cloud, and `cloud.model` is not set",
            remedy="name one, or take `policy: edge_only`",
        )
    return policy


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that `--item-shape 28,28` gives. Raises `ConfigError`."""
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise ConfigError(f"`--item-shape {text}` is not a shape", remedy="write it as 28,28 or 480,640,3") from error
