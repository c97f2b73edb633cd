"""Tensors of PyTorch as the engines see them."""
