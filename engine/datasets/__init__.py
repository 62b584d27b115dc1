"""A set of prompts as a dataset: cut, measured, written, and continued after a stop."""
