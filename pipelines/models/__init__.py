"""Models: releases, running them with ONNX Runtime, and heads that read their outputs."""

import os

# Read when ONNX Runtime is loaded: from 1.32 on it sends usage data and keeps a device's id on disk.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
