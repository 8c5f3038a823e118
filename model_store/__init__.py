"""The contract between training and serving: what an artifact is, and the only pixel and token code."""

import os

# ONNX Runtime for Linux reports its use to Microsoft from version 1.29 on, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
