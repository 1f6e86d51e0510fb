"""Training: configuration, the loop with exact resume, and the two trainers (image tokenizer, Show-o)."""
