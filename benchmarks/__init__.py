"""Runnable by anyone, one file a question: `python -m benchmarks.NAME [--json] [--quick]`. Not installed."""
