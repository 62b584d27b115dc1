"""From a batch of rows to distances: the layer loop, what is measured in it, and its replay on CUDA."""
