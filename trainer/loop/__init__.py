"""The training loop: the probe step, steps, fallbacks after out-of-memory, evaluation and saving on time.

In: a built model, rows, a Job. Out: trained weights and Events.
"""
