"""What theory says of the noise of SGD: closed forms, and the equations that it follows."""
