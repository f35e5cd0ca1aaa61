"""LLaVA-OneVision: SigLIP, anyres with newlines, several images as one tile each, pooled video frames."""
