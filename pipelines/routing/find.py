"""A policy by its name, built from its options: entry points of group `tidegate.policies`, or `module:name`."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

import msgspec

from pipelines.errors import ConfigError
from pipelines.routing.base import Policy

__all__ = ["build_policy", "find_policy", "policy_names"]

GROUP = "tidegate.policies"


def policy_names() -> list[str]:
    """Names of the installed policies."""
    return sorted(entry_points(group=GROUP).names)


def find_policy(name: str) -> type[Policy]:
    """The class of the policy `name`. Raises `ConfigError` where there is none, or where it is not a policy."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found: Any = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"policy '{name}' cannot be imported ({error})",
                remedy="write it as module:name, the module on the import path",
            ) from error
    else:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            raise ConfigError(
                f"there is no policy '{name}'",
                remedy=f"{_perhaps(name, list(points))}choose one of {', '.join(sorted(points))}, or write module:name",
            )
        found = points[name].load()
    lacking = [part for part in ("reasons", "uses_model", "admit", "escalate") if not hasattr(found, part)]
    if lacking or not inspect.isclass(found):
        raise ConfigError(
            f"policy '{name}' is {f'without {lacking[0]}' if lacking else 'not a class'}",
            remedy="let it follow pipelines.routing.base.Policy",
        )
    return cast("type[Policy]", found)


def build_policy(name: str, options: Mapping[str, Any] | None = None) -> Policy:
    """The policy `name` with `options`. Raises `ConfigError` naming the option that is unknown, missing or wrong."""
    kind = find_policy(name)
    given = dict(options or {})
    known = list(inspect.signature(kind).parameters)
    for option in given:
        if option not in known:
            remedy = f"{_perhaps(option, known)}it takes {', '.join(known)}" if known else "it takes none: remove it"
            raise ConfigError(f"policy '{name}' has no option '{option}'", remedy=remedy)
    try:
        return msgspec.convert(given, kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(
            f"policy '{name}' does not take these options ({error})",
            remedy=f"correct them; it takes {', '.join(known) or 'none'}",
        ) from error


def _perhaps(given: str, known: list[str]) -> str:
    close = get_close_matches(given, known, 1)
    return f"perhaps '{close[0]}'; " if close else ""
