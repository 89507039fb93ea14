"""Kernels of networks: in the limit of infinite width, and of the network at hand (Jacot, Gabriel & Hongler 2018)."""
