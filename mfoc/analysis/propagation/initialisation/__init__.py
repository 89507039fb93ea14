"""Weights at which perturbations keep their size: by theory for chains, by tuning for every other network."""
