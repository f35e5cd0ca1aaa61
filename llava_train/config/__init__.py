"""Typed run configuration: from recipes and command line to one checked `Config`. Needs no torch, no transformers."""
