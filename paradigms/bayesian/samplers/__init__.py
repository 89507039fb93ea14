"""Samplers as control: Langevin, Stein variational gradient descent and the path-integral sampler."""
