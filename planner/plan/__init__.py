"""The Plan: made, written, read, compared, checked again before a run, and cached.

In: a Request, or a plan.toml. Out: a Plan and its file.
"""
