"""A frozen language model: found, read, cut, adapted, divided, and passed through on a shorter way."""
