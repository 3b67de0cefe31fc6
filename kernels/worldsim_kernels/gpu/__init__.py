"""Triton forms of the kernels; each module is loaded when a GPU first needs it."""
