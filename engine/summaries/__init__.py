"""What the terminal shows of one measured prompt, line by line."""
