"""What speaks Pyro: its models and guides seen from outside, and networks as models of it."""
