"""Models: releases, running them with ONNX Runtime, and heads that read their outputs."""
