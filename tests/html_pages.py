"""Parses the HTML pages that the zoo writes."""

import html.parser
import re

EVIL = "<script>alert('x')</script>"
_VOID = {"meta", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """Parser that checks the nesting of tags and collects tables, headings, text and attributes."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.headings, self.tables, self.attributes = [], [], [], [], []
        self.words, self.classes = "", []
        self.feed(self.source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.classes += (dict(attributes).get("class") or "").split()
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        # Removes the indentation of the templates.
        data = re.sub(r"\s*\n\s*", " ", re.sub(r"^\s*\n\s*|\s*\n\s*$", "", data))
        self.words += data
        if "h2" in self.open:
            self.headings[-1] += data
        if "th" in self.open or "td" in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, *head):
        """Returns the rows of the table with a header row that begins with `head`."""
        (match,) = [table for table in self.tables if tuple(table[0][: len(head)]) == head]
        return match[1:]
