"""Data: read it, recognise its shape, turn it into tokens and labels."""
