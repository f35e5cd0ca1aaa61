"""What is special to LLaVA-OneVision, in one place: geometry, features, settings, starts, processor files."""
