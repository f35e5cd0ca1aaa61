"""One package per model family: its geometry, features, template and processor, each used by both data and model."""
