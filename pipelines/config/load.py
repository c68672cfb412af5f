"""Reading a pipeline file. Whatever is wrong with it is one `ConfigError` that names file, key and remedy."""

import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pipelines.config.pipeline import KafkaCluster, Pipeline
from pipelines.config.security import Secret, refuse_literals
from pipelines.config.units import decode_hook, schema_hook
from pipelines.errors import ConfigError

FILE_BYTES_MOST = 1 << 20

_QUOTED = re.compile(r""" ?(['"])(?!<|.\1).*\1""")
"""What an error quotes of a file, but for a single character and names such as `<block end>`."""


def load(path: Path | str) -> Pipeline:
    """Read and validate; paths in the file are made absolute against its folder. Raises `ConfigError`."""
    path = Path(path)
    raw = _read(path)
    refuse_literals(path, raw)
    _refuse_unknown_keys(path, raw, Pipeline, "")
    try:
        pipeline = msgspec.convert(raw, Pipeline, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise ConfigError(f"{path}: {key + ': ' if key else ''}{_one_line(problem)}") from error
    return _with_absolute_paths(pipeline, path)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    return msgspec.json.schema(Pipeline, schema_hook=schema_hook)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > FILE_BYTES_MOST:
            raise ConfigError(f"{path} is larger than {FILE_BYTES_MOST} bytes", remedy="give a pipeline file")
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"{path} cannot be read ({reason})", remedy="give a pipeline file; `tidegate init` writes one"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # A date such as 2026-02-30 is a ValueError.
        raise ConfigError(f"{path} is not YAML: {_why_no_yaml(error)}", remedy="mend it there") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no keys", remedy="`tidegate init` writes a file to begin with")
    return raw


def _refuse_unknown_keys(path: Path, raw: dict[str, Any], kind: type, prefix: str) -> None:
    """msgspec refuses unknown keys too, but cannot say which one was meant."""
    types_of = typing.get_type_hints(kind)
    hints = {field.encode_name: types_of[field.name] for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean `{prefix}{near[0]}`?" if near else f"known are {', '.join(sorted(hints))}"
            raise ConfigError(f"{path}: `{prefix}{_one_line(key)}` is not a known key", remedy=remedy)
        section = _section_of(hints[key])
        if section is not None and isinstance(value, dict):
            _refuse_unknown_keys(path, value, section, f"{prefix}{key}.")


def _section_of(hint: Any) -> type | None:
    """The struct that a key holds, through `X | None`."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    structs = [c for c in choices if isinstance(c, type) and issubclass(c, msgspec.Struct) and c.__struct_fields__]
    return structs[0] if len(structs) == 1 and structs[0].__struct_config__.forbid_unknown_fields else None


def _with_absolute_paths(pipeline: Pipeline, file: Path) -> Pipeline:
    def absolute(key: str, given: str) -> Path:
        try:
            return file.resolve().parent / Path(given).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{file}: {key}: {given} names no user's folder", remedy="correct the path") from error

    def tier(name: str, model: Any) -> Any:
        reference, labels = model.model, model.labels
        if reference is not None and not reference.startswith("builtin:"):
            reference = str(absolute(f"{name}.model", reference))
        if isinstance(labels, str):
            labels = _labels(file, f"{name}.labels", absolute(f"{name}.labels", labels))
        return msgspec.structs.replace(model, model=reference, labels=labels)

    def secret(key: str, where: Any) -> Any:
        is_file = isinstance(where, Secret) and where.file is not None
        return msgspec.structs.replace(where, file=str(absolute(key, where.file))) if is_file else where

    def cluster(name: str, section: KafkaCluster) -> KafkaCluster:
        tls, sasl = section.tls, section.sasl
        if tls is not None:
            given = {key: getattr(tls, key) for key in ("ca", "certificate", "key")}
            paths = {key: str(absolute(f"{name}.tls.{key}", path)) for key, path in given.items() if path is not None}
            password = secret(f"{name}.tls.key_password", tls.key_password)
            tls = msgspec.structs.replace(tls, **paths, key_password=password)
        if sasl is not None:
            sasl = msgspec.structs.replace(sasl, password=secret(f"{name}.sasl.password", sasl.password))
        raw = {key: secret(f"{name}.librdkafka.{key}", value) for key, value in section.librdkafka.items()}
        return msgspec.structs.replace(section, tls=tls, sasl=sasl, librdkafka=raw)

    source = msgspec.structs.replace(pipeline.source, path=str(absolute("source.path", pipeline.source.path)))
    edge, cloud = tier("edge", pipeline.edge), tier("cloud", pipeline.cloud)
    kafka = msgspec.structs.replace(
        pipeline.kafka,
        edge=cluster("kafka.edge", pipeline.kafka.edge),
        cloud=cluster("kafka.cloud", pipeline.kafka.cloud),
    )
    return msgspec.structs.replace(pipeline, source=source, edge=edge, cloud=cloud, kafka=kafka)


def _labels(file: Path, key: str, path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: {key}: {path} cannot be read", remedy="give a text file with one name a line"
        ) from error
    return [name for name in names if name]


def _why_no_yaml(error: Exception) -> str:
    """Where and what, without the line itself or a piece of it: a secret may stand there."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return _one_line(error)
    begun = error.context_mark
    context = f", {error.context} from line {begun.line + 1} on" if error.context and begun is not None else ""
    problem = _QUOTED.sub("", _one_line(error.problem))
    return f"line {mark.line + 1}, column {mark.column + 1}{context}: {problem}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
