"""Large prompt sets: from a file of prompts to a dataset that can be continued, by one process or many."""
