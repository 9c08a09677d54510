"""Is this the model and the loss that we mean? Proved on the real model before training.

In: the built model and rows. Out: nothing, or the error that names what differs.
"""
