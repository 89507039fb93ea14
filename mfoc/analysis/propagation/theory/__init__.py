"""Networks of infinite width as maps of one variable: lengths, correlations, gradients; phases."""
