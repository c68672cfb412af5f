"""Errors of the runtime. The whole tree is drawn in `schemas.errors`."""

from schemas.errors import Fenced, ForeignRecord, RecordError, TakenOver, TidegateError, UnknownVersion, UserError

__all__ = [
    "AccessError",
    "BrokerError",
    "ConfigError",
    "Fenced",
    "ForeignRecord",
    "ModelError",
    "RecordError",
    "SourceError",
    "TakenOver",
    "TidegateError",
    "TransportError",
    "UndecodableItem",
    "UnknownVersion",
    "UserError",
]


class ConfigError(UserError):
    """A pipeline file that cannot be read or does not make sense. Names the file and the key."""


class BrokerError(UserError):
    """A broker that is not there, cannot be started or refuses us."""


class AccessError(UserError):
    """A cluster refuses our login, or a permission is missing. It ends a worker at once: trying again mends nothing."""


class ModelError(UserError):
    """A model file that is missing, damaged or of the wrong shape."""


class SourceError(UserError):
    """A source that is missing or holds nothing that can be read."""


class TransportError(TidegateError):
    """Kafka failed in a way that a later try may mend. The shell rolls back to what is committed and goes on."""


class UndecodableItem(TidegateError):
    """Bytes that their codec cannot decode. The item ends `dead_lettered`."""
