"""Where do models come from? Folders, GGUF files, the hub, and the built-in starter.

In: what the user wrote as the model. Out: a reference that holds its configuration, tokenizer and checked weights.
"""
