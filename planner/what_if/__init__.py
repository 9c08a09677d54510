"""What if it were another card, model, length, rank, batch or method? Each answer is a plan or an estimate of its own.

In: a Request. Out: a limit, or a row for each card, model or method.
"""
