"""Web pages from Jinja2 templates, each a single file without scripts that needs no other file and no network."""
