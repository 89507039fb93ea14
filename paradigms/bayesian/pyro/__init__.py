"""All that speaks Pyro: models read as densities, its guides as laws, and solutions handed back to it."""
