"""The transformer, the image tokenizer, weights on disk, losses."""
