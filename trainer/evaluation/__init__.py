"""How good is it? Held-out loss, answers, metrics, and a finished run opened for evaluation or chat.

In: a model and rows. Out: an Evaluation and samples.
"""
