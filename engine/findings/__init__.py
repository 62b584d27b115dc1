"""What stands out in a table of any size, as frames, text and JSON."""
