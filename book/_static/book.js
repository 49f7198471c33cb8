/* What a page does when it is asked: light or dark, search, copy, enlarge, print. The text needs none of it. */
{
  const root = document.documentElement;
  const make = (name, properties) => Object.assign(document.createElement(name), properties);

  // Light or dark: the system's choice until the reader makes one.
  document.getElementById("theme").onclick = () => {
    const dark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.theme = root.dataset.theme; } catch { /* a browser that keeps nothing forgets this too */ }
  };

  // A long list of contents opens where the reader is.
  const here = document.querySelector("#contents [aria-current]");
  if (here) here.closest("#contents").scrollTop = here.offsetTop - 200;

  // Code is copied whole.
  for (const box of document.querySelectorAll(".cell_input .highlight, section > div[class*=highlight-] > .highlight")) {
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    button.onclick = async () => {
      await navigator.clipboard.writeText(box.querySelector("pre").textContent);
      button.textContent = "Copied";
    };
    box.append(button);
  }

  // A figure is enlarged by its button, or by a click on it.
  const frame = document.getElementById("picture");
  for (const image of document.querySelectorAll("figure img, .cell_output img")) {
    const button = make("button", { type: "button", className: "enlarge", textContent: "Enlarge" });
    button.onclick = image.onclick = () => {
      frame.querySelector("img")?.remove();
      frame.append(make("img", { src: image.src, alt: image.alt, className: image.className }));
      frame.showModal();
    };
    image.after(button);
  }
  frame.onclick = () => frame.close();

  // A drawer closes when it has led somewhere.
  const sections = document.getElementById("sections");
  sections?.addEventListener("click", (event) => {
    if (event.target.closest("a") && sections.matches(":popover-open")) sections.hidePopover();
  });

  // What scrolls sideways can be scrolled with the keyboard.
  const reachable = () => {
    const boxes = [...document.querySelectorAll("pre, .table, .formula, .panels")];
    const wide = boxes.map((box) => box.scrollWidth > box.clientWidth);
    boxes.forEach((box, i) => (wide[i] ? (box.tabIndex = 0) : box.removeAttribute("tabindex")));
  };
  addEventListener("load", reachable);
  addEventListener("resize", reachable);
  addEventListener("toggle", reachable, true);  // a fold that opens brings code of its own

  // A link to a place within a fold opens it, also in browsers that do not do so themselves.
  const unfold = () => {
    const place = document.getElementById(location.hash.slice(1));
    let fold = place?.closest("details:not([open])");
    if (!fold) return;
    for (; fold; fold = fold.parentElement.closest("details")) fold.open = true;
    place.scrollIntoView();
  };
  unfold();
  addEventListener("hashchange", unfold);

  // A term shows its meaning to the pointer, the keyboard and a first tap. Escape closes it; the pointer may go over it.
  let meaning, leaving;
  const leave = () => (leaving = setTimeout(close, 250));
  const close = () => {
    meaning?.hidePopover();
    meaning = null;
  };
  for (const term of document.querySelectorAll("a.term")) {
    const box = document.getElementById(term.getAttribute("aria-describedby"));
    const show = () => {
      clearTimeout(leaving);
      if (meaning === box) return;
      close();
      box.showPopover();
      meaning = box;
      const at = term.getClientRects()[0];
      const below = at.bottom + box.offsetHeight + 6 < innerHeight;
      box.style.left = `${Math.max(8, Math.min(at.left, root.clientWidth - box.offsetWidth - 8))}px`;
      box.style.top = `${scrollY + (below ? at.bottom : at.top - box.offsetHeight)}px`;
    };
    let first;  // whether a tap is the first
    term.onpointerdown = (event) => (first = event.pointerType !== "mouse" && meaning !== box);
    term.onclick = (event) => {
      if (!first) return;
      event.preventDefault();
      first = false;
      show();
    };
    term.onfocus = show;
    term.onblur = close;
    term.onpointerenter = (event) => event.pointerType === "mouse" && show();
    term.onpointerleave = (event) => event.pointerType === "mouse" && leave();
    box.onpointerenter = () => clearTimeout(leaving);
    box.onpointerleave = leave;
  }
  addEventListener("keydown", (event) => event.key === "Escape" && close());
  addEventListener("pointerdown", (event) => event.target.closest?.(".term, .meaning") || close());

  // On paper nothing stays folded, also in browsers that the style sheet cannot tell to unfold.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));

  // Search: every section, claim and term of the book is an entry; see book/_ext/lookup.py.
  const search = document.getElementById("search");
  const [input, status, list] = search.children;
  const cjk = /[\u3400-\u9fff]/;
  const pattern = (word) => {
    const stem = word.length > 4 ? word.replace(/(?:ies|es|ed|ing|s)$/, "") : word;
    return new RegExp((cjk.test(word) ? "" : "(?<![\\p{L}\\p{N}])") + stem, "giu");
  };

  // The entries that have the most of the words; among those, words in the heading, the words as one phrase, density.
  window.findInBook = (query) => {
    const phrase = query.toLowerCase().trim();
    const given = phrase.match(/[\p{L}\p{N}]+/gu) || [];
    const words = [...new Set(given)].map(pattern);
    const whole = new RegExp(`(?<![\\p{L}\\p{N}])${given.join("[^\\p{L}\\p{N}]+")}(?![\\p{L}\\p{N}])`, "iu");
    const hits = [];
    for (const [address, title, entries] of window.bookIndex) {
      for (const [anchor, heading, text] of entries) {
        let found = 0, score = 0;
        for (const word of words) {
          const inHeading = (heading.match(word) || []).length;
          const inText = (text.match(word) || []).length;
          found += inHeading + inText > 0;
          const early = inText && text.search(word) < 160;
          score += 3 * Math.min(inHeading, 1) + early + Math.min(inText, 4) / Math.log2(8 + text.length / 40);
        }
        if (heading.toLowerCase().includes(phrase)) score += whole.test(heading) ? 20 : 6;
        if (text.toLowerCase().includes(phrase)) score += 4;
        if (found) hits.push({ address: `${address}#${anchor}`, title, heading, text, found, score });
      }
    }
    const most = Math.max(0, ...hits.map((hit) => hit.found));
    const enough = hits.filter((hit) => hit.found >= Math.max(most - 1, words.length / 2));
    return { words, hits: enough.sort((a, b) => b.found - a.found || b.score - a.score).slice(0, 20) };
  };

  const excerpt = ({ text }, words) => {
    const first = Math.min(...words.map((word) => text.search(word)).filter((place) => place >= 0), text.length);
    const start = first < 70 || first === text.length ? 0 : text.lastIndexOf(" ", first - 50) + 1;
    const room = text.length > start + 180 ? text.lastIndexOf(" ", start + 180) : text.length;
    const piece = (start ? "… " : "") + text.slice(start, room) + (room < text.length ? " …" : "");
    const any = new RegExp(words.map((word) => word.source).join("|"), "giu");
    const parts = [];
    let last = 0;
    for (const match of piece.matchAll(any)) {
      parts.push(piece.slice(last, match.index), make("mark", { textContent: match[0] }));
      last = match.index + match[0].length;
    }
    return [...parts, piece.slice(last)];
  };

  const show = () => {
    if (!window.bookIndex) return;
    const { words, hits } = window.findInBook(input.value);
    status.textContent = input.value.trim() ? (hits.length ? `${hits.length} places` : "Nothing has these words.") : "";
    list.replaceChildren(...hits.map((hit) => {
      const link = make("a", { href: root.dataset.root + hit.address });
      const heading = make("b", { textContent: hit.heading });
      const page = make("small", { textContent: hit.title === hit.heading ? "" : ` · ${hit.title}` });
      link.append(heading, page, make("br"), ...excerpt(hit, words));
      link.onclick = () => search.close();
      const item = make("li");
      item.append(link);
      return item;
    }));
  };
  const open = () => {
    search.showModal();
    input.select();
    if (!window.bookIndex && !document.querySelector("script[src$='search.js']")) {
      document.head.append(make("script", { src: `${root.dataset.root}_static/search.js`, onload: show }));
    }
  };
  document.getElementById("find").onclick = open;
  input.oninput = show;
  search.addEventListener("click", (event) => event.target === search && search.close());  // beside the dialog
  search.onkeydown = (event) => {
    const links = [...list.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
    if (next !== undefined) {
      (links[next] || input).focus();
      event.preventDefault();
    } else if (event.key === "Enter" && at < 0 && links[0]) links[0].click();
  };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      open();
    }
  });
}
