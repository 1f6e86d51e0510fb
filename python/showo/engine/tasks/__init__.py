"""What people do with a model, as short programs on a session: one file for each task."""
