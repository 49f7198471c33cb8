"""The report as one page: everything escaped, nothing loaded, readable on a phone and in both themes."""

from html import escape

from batchlab.advise._svg import figure

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5a5a66; --line: #d8d8de; --paper: #fff; --main: #1f5fae }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #a9a9b6; --line: #3a3a44; --paper: #17171b; --main: #7db3f5 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: .5rem 0 } h2 { font-size: 1.1rem; margin: 1.8rem 0 .4rem }
.advice { font-size: 1.2rem; border-left: .3rem solid var(--main); padding: .3rem 0 .3rem .8rem;
  overflow-wrap: anywhere }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
figure { margin: 0 } figcaption, small, code { color: var(--soft); font-size: .85rem }
svg { width: 100%; height: auto; display: block } svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
.mid { text-anchor: middle } .end { text-anchor: end } .grid { stroke: var(--line) } circle { fill: var(--main) }
.line { fill: none; stroke: var(--main); stroke-width: 2 } .bar { stroke: var(--main) }
.dashed { stroke-dasharray: 5 4 }
.band { fill: var(--main); opacity: .18 } .mark { stroke: var(--ink); stroke-dasharray: 2 3 }
dl { margin: 0 } .row { display: grid; grid-template-columns: 13rem 1fr; gap: 0 1rem; padding: .3rem 0;
  border-top: 1px solid var(--line) }
dt, dd { margin: 0; overflow-wrap: anywhere } dd b { font-weight: 600 } dd small, dd code { display: block }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr } dt { color: var(--soft); font-size: .9rem } }
"""


def page(report):
    """The HTML of a ``Report``."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Batch size for {escape(report.name)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>Batch size for {escape(report.name)}</h1>",
        f'<p class="advice">{escape(report.headline())}</p><div class="figures">{"".join(_figures(report))}</div>',
    ]
    for title, rows in report.sections():
        if rows:
            parts.append(f"<h2>{escape(title)}</h2><dl>{''.join(map(_row, rows))}</dl>")
    parts.append("<h2>What to know, and what this could not judge</h2><dl>")
    parts += [
        f'<div class="row"><dt>{escape(name)}</dt><dd>{escape(sentence)}</dd></div>'
        for name, sentence in report.notes()
    ]
    parts.append(
        f"</dl><p><small>Measured by batchlab in {report.seconds:.0f} s. Intervals are 95 %, those of the batch and "
        "the critical batch size 80 %.</small></p></main></body></html>"
    )
    return "\n".join(parts)


def _row(row):
    meaning = f"<small>{escape(row.meaning)}</small>" if row.meaning else ""
    return (
        f'<div class="row"><dt>{escape(row.name)}</dt><dd><b>{escape(row.shown())}</b>{meaning}'
        f"<code>{escape(row.call)}</code></dd></div>"
    )


def _figures(report):
    a, m = report.advice, report.measured
    sizes = [size for size, *_ in a.curve]
    yield _shown(
        figure(
            f"Time to a loss is least at a batch of {a.batch_size}, and rises to both sides.",
            "batch size (examples)",
            "time / best time",
            lines=[("", sizes, [c[1] for c in a.curve], False)],
            bands=[(sizes, [c[2] for c in a.curve], [c[3] for c in a.curve])],
            marks=[(a.batch_size, f"{a.batch_size:,}")],
        ),
        "Time to a loss, over that of the best size: the median, and where it lies four times of five.",
    )
    slowest = m.timings[-1]
    yield _shown(
        figure(
            f"A step takes {slowest[1].estimate:.3g} s with {slowest[0]} examples, and hardly less below the knee.",
            "batch size (examples)",
            "seconds a step",
            lines=[("", [b for b, _ in m.timings], [t.estimate for _, t in m.timings], False)],
            points=[(b, t.low, t.estimate, t.high) for b, t in m.timings],
        ),
        "Seconds a step takes, without loading.",
    )
    looks = [x for x in m.looks if x.b_simple.estimate > 0]
    if len(looks) > 1:
        yield _shown(
            figure(
                f"The noise scale goes from {looks[0].b_simple.estimate:.3g} to {looks[-1].b_simple.estimate:.3g}.",
                "examples seen in the short run",
                "noise scale (examples)",
                lines=[("", [x.examples for x in looks], [x.b_simple.estimate for x in looks], False)],
                points=[(x.examples, x.b_simple.low, x.b_simple.estimate, x.b_simple.high) for x in looks],
                linear_x=True,
            ),
            "The noise scale along a short run.",
        )
    if m.ranges:
        yield _shown(
            figure(
                "The loss as the rate rises: it falls, and where the rate is too high it leaves.",
                "learning rate",
                "smoothed loss",
                lines=[(f"batch of {r.batch_size:,}", r.lrs, r.losses, i > 0) for i, r in enumerate(m.ranges)],
                linear_y=True,
            ),
            f"{'A short run' if len(m.ranges) == 1 else 'Two short runs'} in which the rate rises at every step.",
        )


def _shown(svg, caption):
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""
