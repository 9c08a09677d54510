"""What do a GPU's own kernels do otherwise than the meta device's? Rules by device and library version.

In: a call that PyTorch dispatches on the meta device. Out: the tensors, scratch space and kernel work of the CUDA call.
"""
