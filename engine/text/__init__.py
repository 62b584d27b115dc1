"""From text to token ids, and which of the tokens are hidden."""
