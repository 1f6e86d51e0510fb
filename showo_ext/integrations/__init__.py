"""showo_ext in other people's models: `hf` for transformers, `official` for the published Show-o model object.

Nothing here is imported by the rest of the package, so showo_ext needs none of the libraries it integrates with.
"""
