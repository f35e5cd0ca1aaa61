"""What a run would cost on GPUs that are not here: packs drawn, ranks balanced, hours and memory in tables."""
