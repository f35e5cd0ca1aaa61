"""A stage's data as a stream of steps: packs decoded by processes, put together as batches."""
