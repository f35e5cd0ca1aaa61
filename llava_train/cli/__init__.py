"""The front door and its verbs, one module each."""
