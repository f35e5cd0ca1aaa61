"""The text rules of a conversation, one file a template: which text a sample becomes, and what of it is learned."""
