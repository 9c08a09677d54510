"""What does an operation allocate, compute and keep? A step's operations on the meta device, as events.

In: PyTorch's dispatch of a step. Out: Events of allocations, and Work (FLOPs, bytes moved), operation by operation.
"""
