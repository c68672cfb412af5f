"""One YAML file becomes frozen, validated objects.

units      durations `5s`, sizes `16MiB`, rates `10/s`
pipeline   the objects: every key of the file, its meaning and default
load       reading the file; one clear line for what is wrong
clusters   from the file (or the environment, or a running pipeline) to Kafka clusters
home       where data and state are kept
"""

from pipelines.config.clusters import clusters
from pipelines.config.load import load
from pipelines.config.pipeline import Pipeline

__all__ = ["Pipeline", "clusters", "load"]
