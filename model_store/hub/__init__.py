"""Other projects' ONNX exports of CLIP models, found in folders and on the Hugging Face hub, as artifacts.

It needs onnx and huggingface_hub (the extra `hub`); nothing that serves imports it.
"""
