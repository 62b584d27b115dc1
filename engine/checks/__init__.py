"""Proof at load, on the machine at hand, that the engine computes what transformers computes."""
