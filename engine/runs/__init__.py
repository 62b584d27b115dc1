"""From prompts to impacts: which prompts share a pass, and what each gives."""
