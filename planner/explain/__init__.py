"""Where does a figure come from? The parts of an Estimate, and the timeline of a step's memory.

In: a Plan. Out: figures with their sources; a page in HTML.
"""
