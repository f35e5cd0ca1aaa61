"""Tensors in files, one at a time: safetensors written and read, names of transformers 4.57 and 5."""
