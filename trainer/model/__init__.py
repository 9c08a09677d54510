"""The model of a Recipe: base, quantization, adapter, checkpointing and offloading.

In: a Recipe and a configuration. Out: the module that a step trains, with weights or on the meta device.
"""
