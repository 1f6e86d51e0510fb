"""Inference: pictures from text, text from pictures."""
