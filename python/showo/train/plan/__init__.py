"""What a training costs, on paper: FLOPs, memory, the time of a step, what travels, data, checkpoints, failures.

Only arithmetic on the sizes of a model, the rows of its steps and what makers publish of their GPUs: docs/scaling.md
explains all of it, and compares it with what has been measured.
"""
