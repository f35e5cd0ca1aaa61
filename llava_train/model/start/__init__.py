"""What a run starts from, read from config, tokenizer and headers alone: faults, settings, dimensions."""
