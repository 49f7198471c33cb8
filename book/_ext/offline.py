"""Keep the built pages to themselves: no page loads, or names for loading, anything from another site.

Jupyter Book always adds sphinx-thebe, which writes the address of a script server into every page even when live code
is off, and sphinx-comments, for which this book has no use. Their hooks are taken out again.
"""

UNWANTED = ("sphinx_thebe", "sphinx_comments")


def setup(app):
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.split(".")[0] in UNWANTED:
                app.disconnect(listener.id)
    app.registry.css_files = [(name, options) for name, options in app.registry.css_files if "thebe" not in name]
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
