"""The folder that a run starts from (`model.init`), read without torch: its weights, what they hold, what is wrong."""
