"""Typed run configuration: from recipes and command line to one checked `Config`. Imports neither torch nor transformers."""
