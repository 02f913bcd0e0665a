// What a user does with the page, handed to the functions that do it.

import { drawTheme, fillSettings, readSettings } from "./settings.js";

const $ = (selector) => document.querySelector(selector);
const LONG_PASTE = 2000; // characters; longer ones are logs

// act: {typed, send, task, stop, escape, attach, load, choose, hasTurns, begin, hasBranches, download, set}.
export function listen(act) {
  const question = $("#question");
  let pause = 0;
  question.addEventListener("input", () => (clearTimeout(pause), (pause = setTimeout(act.typed, 400))));
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    act.send(question.value);
  });
  question.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (text.length <= LONG_PASTE) return;
    event.preventDefault();
    act.attach("pasted", text);
  });
  $("#composer").addEventListener("submit", (event) => (event.preventDefault(), act.send(question.value)));
  for (const button of document.querySelectorAll("[data-task]")) {
    button.addEventListener("click", () => act.task(TASKS[button.dataset.task]));
  }
  $("#stop").addEventListener("click", act.stop);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("dialog[open]")) act.escape();
  });
  $("#choose").addEventListener("click", () => $("#file").click());
  $("#file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await act.attach(target.files[0].name, await target.files[0].text());
    target.value = "";
  });
  $("#load").addEventListener("click", () => $("#rows").click());
  $("#rows").addEventListener("change", async ({ target }) => (target.files[0] && (await act.load(target.files[0])), (target.value = "")));
  addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dropping")));
  addEventListener("dragleave", (event) => !event.relatedTarget && document.body.classList.remove("dropping"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) await act.attach(file.name, await file.text());
  });
  $("#model").addEventListener("change", ({ target }) => act.choose(target.value));
  $("#new").addEventListener("click", () => (act.hasTurns() ? $("#sure").showModal() : act.begin()));
  $("#sure").addEventListener("close", () => $("#sure").returnValue === "yes" && act.begin());
  $("#save").addEventListener("click", () => {
    if (act.hasBranches()) $("#which").showModal();
    else act.download(false);
  });
  $("#which").addEventListener("close", () => $("#which").returnValue && act.download($("#which").returnValue === "every"));
  $("#set").addEventListener("click", () => (fillSettings($("#settings")), $("#settings").showModal()));
  $("#settings").addEventListener("close", () => (readSettings($("#settings")), act.set()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
}
