"""HTML pages: the layout, the style sheet and the renderer that all pages share."""
