"""From a checkpoint, or a model in memory, to one uniform view on its weights."""
