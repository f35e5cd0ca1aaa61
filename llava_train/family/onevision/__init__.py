"""What is special to LLaVA-OneVision, in one place: geometry, features, text rules, tokens, processor files."""
