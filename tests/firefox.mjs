// Every page of the built site in Firefox: no message, nothing wider than the window, mathematics typeset, search works.
//
//     make firefox
//     NODE_PATH=/folder/of/node_modules node tests/firefox.mjs _build/html [folder for pictures of every page]
//
// It needs Firefox (on PATH, or its path in BATCHLAB_FIREFOX) and puppeteer-core from npm. tests/test_browser.py holds
// the same in Chromium, and more.

import { existsSync, mkdirSync, readFileSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { delimiter, extname, join, relative, resolve } from "node:path";

const puppeteer = createRequire(import.meta.url)("puppeteer-core");
const [site, pictures] = process.argv.slice(2).map((path) => resolve(path));
const kinds = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml" };
const shapes = [["light", 1280, 900], ["dark", 390, 844]];

const program = () => {
  const places = process.env.PATH.split(delimiter).flatMap((p) => ["firefox-esr", "firefox"].map((n) => join(p, n)));
  const found = process.env.BATCHLAB_FIREFOX || places.find(existsSync);
  if (!found) throw new Error("no Firefox: put one on PATH, or its path into BATCHLAB_FIREFOX");
  return found;
};
const below = (folder) => readdirSync(folder, { recursive: true }).map((name) => join(folder, name));
const pages = below(site).filter((path) => extname(path) === ".html" && !path.includes("_static"));

const server = createServer((request, response) => {
  const path = join(site, decodeURIComponent(request.url.split("?")[0]));
  const found = existsSync(path) && statSync(path).isFile();
  response.writeHead(found ? 200 : 404, { "Content-Type": kinds[extname(path)] || "application/octet-stream" });
  response.end(found ? readFileSync(path) : "");
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const address = `http://127.0.0.1:${server.address().port}/`;

// Runs in the page; returns what is wrong with it.
const faults = async (theme) => {
  await document.fonts.ready;
  const found = [], root = document.documentElement;
  const extra = root.scrollWidth - root.clientWidth;
  if (extra > 0) found.push(`${extra} pixels wider than the window`);
  for (const formula of document.querySelectorAll(".formula")) {
    if (formula.scrollWidth > formula.clientWidth) found.push(`too wide: ${formula.textContent}`);
  }
  const face = [...document.fonts].find((face) => face.family.includes("STIX Two Math"));
  if (document.querySelector("math") && face?.status !== "loaded") found.push("the font of mathematics is missing");
  const [red] = getComputedStyle(document.body).backgroundColor.match(/\d+/g);
  if ((red < 128) !== (theme === "dark")) found.push(`not ${theme}`);
  if (root.scrollHeight < 400 || !document.querySelector("main h1")) found.push("no text");
  return found;
};

const browser = await puppeteer.launch({ browser: "firefox", executablePath: program() });
let wrong = 0;
try {
  for (const path of pages.sort()) {
    for (const [theme, width, height] of shapes) {
      const name = relative(site, path), page = await browser.newPage(), messages = [];
      page.on("console", (message) => messages.push(`console: ${message.text()}`));
      page.on("pageerror", (error) => messages.push(`error: ${error.message}`));
      page.on("response", (answer) => answer.status() >= 400 && messages.push(`${answer.status()}: ${answer.url()}`));
      await page.setViewport({ width, height });
      await page.evaluateOnNewDocument((theme) => { localStorage.theme = theme; }, theme);
      await page.goto(address + name, { waitUntil: "load" });
      const found = [...(await page.evaluate(faults, theme)), ...messages];
      for (const fault of found) console.error(`${name}, ${theme}, ${width} px: ${fault}`);
      wrong += found.length;
      if (pictures) {
        mkdirSync(pictures, { recursive: true });
        await page.screenshot({ path: join(pictures, `${name.replaceAll("/", "-")}-${theme}.png`), fullPage: true });
      }
      await page.close();
    }
  }
  const page = await browser.newPage();
  await page.goto(address + "index.html");
  await page.keyboard.press("/");
  await page.type("#search input", "批量大小");
  await page.waitForSelector("#search li a");
  const [hit] = await page.$$eval("#search li b", (headings) => headings.map((heading) => heading.textContent));
  if (!hit.startsWith("batch size")) {
    console.error(`the search leads to ${hit}`);
    wrong += 1;
  }
} finally {
  await browser.close();
  server.close();
}
console.log(`${pages.length} pages in Firefox: ${wrong} faults`);
process.exit(wrong ? 1 : 0);
