"""From events to bytes: PyTorch's caching allocator replayed, on the GPU and in the host's RAM.

In: a Rehearsal. Out: peaks of allocated and reserved bytes by phase, and what lives at the peak.
"""
