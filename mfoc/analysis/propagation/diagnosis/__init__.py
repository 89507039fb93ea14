"""What is measured of a recorded network, and the verdict on it."""
