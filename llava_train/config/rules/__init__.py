"""What must hold of settings beyond the types of single fields: small functions that yield faults with their remedy."""
