"""A small world of scenes with ground truth: coloured shapes on white, drawn, described and asked about from a seed.

`showo make-world` writes it. Some combinations (a shape in a colour, two shapes together, so many of a shape) are held
out: nothing that training reads contains them, so that a model can be judged on what it was never shown.
"""
