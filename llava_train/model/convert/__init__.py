"""Checkpoints of the original trainer as Hugging Face folders."""
