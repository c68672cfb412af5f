"""Ready pipelines as YAML."""
