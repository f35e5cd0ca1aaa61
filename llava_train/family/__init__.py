"""One package per model family: its geometry, features, processor and faults, each used by both data and model."""
