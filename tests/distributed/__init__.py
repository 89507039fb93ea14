"""What holds over processes."""
