"""How training scales with width: the coordinate check, and the parametrisation in which it does not."""
