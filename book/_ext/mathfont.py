"""Make the font of mathematics from STIX Two Math 2.11 (SIL Open Font License 1.1).

    pip install brotli ziamath      # ziamath brings STIXTwoMath-Regular.ttf
    python book/_ext/mathfont.py PATH_OF_STIXTwoMath-Regular.ttf

The font is cut down to the characters below, 1.5 MB to 70 kB, and changed in a few places:

- a fraction inside a line is set tighter, with a finer rule, as TeX does;
- a subscript of g stands no lower than one of w, and a square after a bracket no higher than
  one after a letter;
- a prime is the one that is drawn for exponents, since Chromium does not look for it;
- the radical's larger sizes are as wide as its smallest, since Chromium leaves room for the
  widest after every root.

tests/test_book.py holds that the font has every character of every formula in the book.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.pens.transformPen import TransformPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

OUT = Path(__file__).resolve().parents[1] / "_static" / "fonts" / "stix-two-math.woff2"
CHARACTERS = """
    20-7E A0 A8 AC AF-B1 B4 B7 BD D7 F7 131 237 2C6-2C7 2D9 2DC 302-304 307-308 30C 391-3A9 3B1-3C9 3D1 3D5 3F5
    2016 2026 2032-2033 2061-2064 20D7 210E 2112-2113 2115 2119 211D 2124 212C 2190-2194 21A6 21D2 21D4
    2200 2202-2209 220F 2211-2213 2217-2218 221A 221D-221E 2223-222B 223C 2243 2248 2254 2260-2261 2264-2265
    226A-226B 2272-2273 2282-2287 2295-2299 22A4-22A5 22C5-22C6 22EE-22F1 2308-230B 23DE-23DF 27E8-27E9
    27F5-27F7 2A7D-2A7E FE00 1D434-1D467 1D49F 1D4A9-1D4AA 1D53C 1D6E2-1D71B
"""
MEASURES = {  # in thousandths of the type size
    "FractionRuleThickness": 54,
    "RadicalRuleThickness": 54,
    "FractionNumeratorShiftUp": 430,
    "FractionDenominatorShiftDown": 370,
    "SubscriptBaselineDropMin": 20,
    "SuperscriptBaselineDropMax": 370,
}


def characters():
    """Return the set of code points the font is to have."""
    found = set()
    for part in CHARACTERS.split():
        first, _, last = part.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


def narrow_roots(font):
    """Draw every size of the radical as wide as the smallest, and none pieced together."""
    variants = font["MATH"].table.MathVariants
    root = font.getBestCmap()[0x221A]
    construction = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(root)]
    construction.GlyphAssembly = None
    width = font["hmtx"][root][0]
    for name in {record.VariantGlyph for record in construction.MathGlyphVariantRecord} - {root}:
        pen = TTGlyphPen(None)
        font.getGlyphSet()[name].draw(TransformPen(pen, (width / font["hmtx"][name][0], 0, 0, 1, 0, 0)))
        font["glyf"][name] = pen.glyph()
        font["hmtx"][name] = (width, 0)


def low_primes(font):
    """Give a prime its form for exponents, which the feature ssty holds."""
    forms = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            alternates = getattr(table, "alternates", {})
            forms |= {name: f"{name}.ssty" for name in alternates if f"{name}.ssty" in alternates[name]}
    for table in font["cmap"].tables:
        for prime in {0x2032, 0x2033} & table.cmap.keys():
            table.cmap[prime] = forms.get(table.cmap[prime], table.cmap[prime])


def main(source):
    font = TTFont(source)
    for name, value in MEASURES.items():
        getattr(font["MATH"].table.MathConstants, name).Value = value
    narrow_roots(font)
    low_primes(font)
    options = subset.Options(flavor="woff2", hinting=False, layout_features=["ccmp", "mark", "ssty"])
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters())
    subsetter.subset(font)
    subset.save_font(font, OUT, options)


if __name__ == "__main__":
    main(sys.argv[1])
