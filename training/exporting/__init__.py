"""From a checkpoint to a published artifact: ONNX graphs, precisions, parity with torch, golden cases."""
