"""An fp32 graph at other precisions: converted, calibrated, measured against the original, and held to a floor.

It needs onnx beside ONNX Runtime (the extras `hub` and `train`), so nothing that serves imports it.
"""
