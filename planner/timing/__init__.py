"""From work to seconds: rooflines, measured rates, and the exchange of gradients between GPUs.

In: a Rehearsal's Work and a device's rates. Out: a Range of seconds a step, and energy where the power is known.
"""
