"""The arithmetic: products, differences, rotary embedding, attention. Nothing here knows of models or text."""
