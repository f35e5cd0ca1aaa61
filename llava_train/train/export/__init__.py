"""A run's checkpoint as a Hugging Face folder or an adapter, with its card."""
