"""What is asked of a model: which attention is cut, in which layers, from whom, and where it is read."""
