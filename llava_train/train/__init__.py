"""From a checked config, data and a model to trained weights on disk."""
