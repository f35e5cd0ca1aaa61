"""What trains of a model: parts, adapters, learning rates."""
