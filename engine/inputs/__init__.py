"""Files of prompts as streams of entries."""
