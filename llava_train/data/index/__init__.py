"""The index of a source, made once: lengths, media and refusals of all its samples; a stage takes its own from it."""
