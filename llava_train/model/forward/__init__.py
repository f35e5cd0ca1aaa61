"""A packed batch through the model: attention, fused layers, loss, and answers of text."""
