"""Variational inference as control, on the weights of networks and on Pyro models."""
