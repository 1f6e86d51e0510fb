"""The model for others than Python programs: HTTP of OpenAI's shape, and a page in the browser."""
