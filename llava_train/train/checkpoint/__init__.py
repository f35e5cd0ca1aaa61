"""Step checkpoints: what they remember, how every rank writes its own, how they are read on any number of ranks."""
