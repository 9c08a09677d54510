"""A run or an export on the hub: what is uploaded, with which card, and what never leaves this machine.

In: a folder of `autoft run`, `merge` or `export`. Out: one commit of a model repository.
"""
