"""The page of `showo demo`: gradio in front of `showo.engine.batching`. See `showo.serve.page.page`."""
