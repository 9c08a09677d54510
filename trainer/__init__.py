"""Does what a Job says: loads, trains, evaluates, saves. Knows no planner.

In: a Job (job.py) with its Recipe (recipe.py). Out: a folder with adapter or model, events.jsonl and result.json.
From the bottom up: adapters, optimizers and objectives are kinds to choose from; runtime and storage serve all; sources
and data bring model and rows; model builds what a step trains; checks prove it before training; loop trains; evaluation
judges and answers; report tells; doctor examines the machine; run does all of it in order; export turns the result into
other forms.
"""
