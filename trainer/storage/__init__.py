"""The run's folder: written aside, locked, checkpointed, and whole or absent.

In: a Job's output path, a model's state, events. Out: files that survive a kill at any moment.
"""
