"""A model from its files: whole, from parts, in 4 or 8 bits, or with weights that are read one by one."""
