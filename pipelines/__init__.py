"""How it flows: the runtime that both tiers share. It knows neither.

core       pure decisions             routing    signals in, route out
codecs     bytes <-> arrays           models     load and run a model
transport  Kafka behind an interface  runtime    the shells that obey the core
config     one YAML file              observe    audit, watch, comparison
cli        the `tidegate` command     library    ready pipelines
"""
