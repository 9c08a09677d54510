"""Decides which fine-tune fits this machine, how long it takes, and why.

In: a Request (request.py), a model's configuration, a Hardware. Out: a Plan, or DoesNotFit with remedies.
From the bottom up: tracing and kernels tell what an operation allocates and launches; rehearsal runs the trainer's
step on them without weights; memory turns its events into bytes, timing into seconds; estimator does both for one
recipe on one device; search compares recipes; history corrects with what runs measured; plan writes plan.toml;
what_if, explain and export answer about a plan.
"""
