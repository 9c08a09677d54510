"""What did earlier runs on this device measure, and what does that make expect of this one?

In: results of runs. Out: rows of a small database, and a Correction beside an Estimate, which stays as it is.
"""
