"""From a checked config, data and a model to trained weights on disk. The only layer that talks to other ranks."""
