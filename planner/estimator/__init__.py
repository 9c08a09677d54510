"""One Recipe on one device: memory and time together.

In: a Recipe, a model's configuration, a Target. Out: an Estimate.
"""
