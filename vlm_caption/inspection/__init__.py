"""Looks at captioned images before training: `inspect.inspect_data`."""
