"""What data hands to the model: the packed batch and the layout of its visuals."""
