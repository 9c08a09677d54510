"""A finished run behind an OpenAI-compatible API: one model in memory, one answer at a time.

In: folders of runs on one base. Out: answers over HTTP, as JSON or as a stream of events.
"""
