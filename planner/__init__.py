"""Decides: which fine-tune fits this machine, how long it takes, and why."""
