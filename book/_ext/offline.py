"""Keep the pages to themselves and to what they use: no script, style sheet or address that Jupyter Book would add.

Jupyter Book always loads the extensions below. Of each we want the directives or nothing; the frame of a page, with its
one script and its one style sheet, is book/_templates/layout.html. So what they add to a page is taken out.
"""

UNWANTED = (
    "pydata_sphinx_theme",
    "sphinx_book_theme",
    "sphinx_comments",
    "sphinx_copybutton",
    "sphinx_thebe",
    "sphinx_togglebutton",
)


def _alone(app):
    """No page of Sphinx's own search and no index: book/_ext/lookup.py finds more, by section."""
    app.builder.search = False
    app.config.html_static_path = [path for path in app.config.html_static_path if path.startswith("book/")]


def setup(app):
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.split(".")[0] in UNWANTED:
                app.disconnect(listener.id)
    app.registry.css_files.clear()
    app.registry.js_files.clear()
    app.connect("builder-inited", _alone, priority=999)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
