"""The glossary where its words are used: `{term}` finds a term by its English words, and has its meaning at hand.

A term's entry is `noise floor (噪声下限)`; a chapter writes {term}`noise floor`. The first link to a term on a page
shows the meaning when it is pointed at, focused or tapped (book/_static/book.js); without a script it is a link.
"""

from sphinx.util.nodes import make_refnode

GLOSSARY = "book/glossary"


def names(entry):
    """Return the English words for a term, in lower case.

    >>> sorted(names("stochastic gradient descent, SGD (随机梯度下降)"))
    ['sgd', 'stochastic gradient descent', 'stochastic gradient descent, sgd']
    """
    english = entry.split(" (")[0].lower()
    return {english, *english.split(", ")}


def _found(app, env, node, shown):
    """Return the link for a {term} whose words are not a whole entry; None, and so a warning, for no entry's words."""
    if node.get("reftype") == "term":
        for entry, _, kind, page, anchor, _ in env.get_domain("std").get_objects():
            if kind == "term" and node["reftarget"].lower() in names(entry):
                return make_refnode(app.builder, node["refdoc"], page, anchor, shown)


def meanings(app):
    """Return what the glossary says: {anchor: HTML of the definition}; nothing where the book has no glossary."""
    if not hasattr(app, "book_meanings"):
        app.book_meanings = {}
        if GLOSSARY in app.env.found_docs:
            glossary = app.env.get_and_resolve_doctree(GLOSSARY, app.builder)
            for item in glossary.findall(lambda node: node.tagname == "definition_list_item"):
                html = app.builder.render_partial(item.children[-1])["fragment"]
                app.book_meanings |= {term["ids"][0]: html for term in item.children[:-1] if term.get("ids")}
    return app.book_meanings


def at_hand(text, meanings):
    """Give the first link to each term on a page, parsed, the term's meaning as its description.

    The meaning has no links of its own, since one could not be reached with the keyboard.
    """
    for link in text.select("a:has(> .std-term)"):
        anchor = link["href"].partition("#")[2]
        name = f"meaning-of-{anchor}"
        if not link["href"].startswith("#") and anchor in meanings and not text.find(id=name):
            link["class"] = ["term"]
            link["aria-describedby"] = name
            box = text.new_tag("div", attrs={"class": "meaning", "id": name, "popover": "manual", "role": "tooltip"})
            box.append(type(text)(meanings[anchor], "html.parser"))
            for inner in [*box.find_all("a"), *box.find_all("dd")]:
                inner.unwrap()
            text.append(box)


def setup(app):
    app.connect("missing-reference", _found)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
