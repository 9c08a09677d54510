"""Which Recipe? Candidates, bounds that prune them, their order by preference, and remedies where none fits.

In: a Request and an estimator. Out: the chosen Recipe with reasons, alternatives, and what was pruned and why.
"""
