"""The model: its forward, where its weights come from, what trains, and the folders that it is written to."""
