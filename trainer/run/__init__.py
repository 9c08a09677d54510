"""A run from its Job to its result: preflight, set-up, training, finish; other processes of several GPUs.

In: a Job. Out: a RunResult, and the folder that tells of it.
"""
