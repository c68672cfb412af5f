"""From a pipeline file to a producer, and what its items look like."""

import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from edge_workers.preprocess import Prepared, Preprocess
from edge_workers.producer import CaptureSettings, Producer
from edge_workers.sources.base import Source, check_rate, open_source
from pipelines.codecs.base import find_codec
from pipelines.config.pipeline import Pipeline
from pipelines.errors import SourceError, UndecodableItem
from pipelines.observe.instruments import Instruments
from pipelines.transport.base import Cluster

SAMPLES_MOST = 20
"""Frames tried for one that can be read. Single unreadable files are no reason to refuse a source."""


def build_producer(
    pipeline: Pipeline, cluster: Cluster, instance: str, stop: threading.Event, instruments: Instruments | None = None
) -> Producer:
    """The producer of a pipeline. Raises `SourceError`, `ConfigError`."""
    settings = CaptureSettings(rate=pipeline.source.rate, deadline_us=pipeline.deadline.us, priority=pipeline.priority)
    return Producer(
        cluster,
        pipeline.topics,
        _source(pipeline),
        _preprocess(pipeline),
        settings,
        instance=instance,
        stop=stop,
        instruments=instruments,
    )


def describe_items(pipeline: Pipeline) -> dict[str, Any]:
    """Streams, codec, and the shape that an item has when it is decoded. Raises `SourceError`, `ConfigError`."""
    source, preprocess = _source(pipeline), _preprocess(pipeline)
    check_rate(source, pipeline.source.rate)
    for frame in islice(source.frames(source.streams[0], None), SAMPLES_MOST):
        prepared = preprocess(frame.content)
        if not isinstance(prepared, Prepared):
            continue
        with suppress(UndecodableItem):  # A damaged file that travels unchanged: the next may do.
            shape = prepared.codec.decode(prepared.payload, prepared.params).shape
            return {"streams": len(source.streams), "codec": prepared.codec.name, "shape": list(shape)}
    raise SourceError(
        f"none of the first {SAMPLES_MOST} frames of {pipeline.source.path} can be read",
        remedy="correct `source.path`",
    )


def _source(pipeline: Pipeline) -> Source:
    section = pipeline.source
    return open_source(section.type, Path(section.path), streams=section.streams, loop=section.loop, **section.options)


def _preprocess(pipeline: Pipeline) -> Preprocess:
    encode = pipeline.encode
    options = {"quality": encode.quality} if encode.codec == "jpeg" else {}
    return Preprocess(find_codec(encode.codec, **options), resize=encode.resize, grey=encode.grey)
