"""Plain torch twins of the operators: same names, same signatures, written to be read. They import torch alone."""
