"""The CPU engine: the rule in one pass over many arrays in host memory, compiled by Numba."""
