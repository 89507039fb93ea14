"""Learning paradigms written as control problems."""
