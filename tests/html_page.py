"""Reads a page as a browser would, and names a page must not be broken by."""

from html.parser import HTMLParser

HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.images, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data
