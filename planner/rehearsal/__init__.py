"""The trainer's own step, run without weights: loading, forward, backward, optimizer step, evaluation, saving.

In: a Recipe and a model's configuration. Out: a Rehearsal, the step's events by phase; of deep models few layers run
and the others are extended from them.
"""
