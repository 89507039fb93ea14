"""Variational inference on the weights of a network as control."""
