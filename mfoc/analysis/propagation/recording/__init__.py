"""A network as it runs: one recorded pass, and where it can be cut into blocks."""
