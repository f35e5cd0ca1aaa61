"""DeepSpeed: the module in, one optimiser step at a time out, and which rank holds which range of a parameter."""
