"""A folder that transformers loads as it is: written whole, with its card, and checked before it takes its place."""
