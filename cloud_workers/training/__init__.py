"""Training of the shipped models. Needs the `train` extra; nothing else of Tidegate does."""
