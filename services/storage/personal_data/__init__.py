"""What is kept about one person: told in one piece, or erased."""
