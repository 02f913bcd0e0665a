// What a user has set: kept in the browser but for the key, which stays in its tab.

import { keep, kept } from "./conversation.js";

const SETTINGS = { model: "", theme: "", system: "", max_tokens: "1024", temperature: "", top_p: "", seed: "", context: "", numbers: true };
export const settings = { ...SETTINGS, key: sessionStorage.getItem("key") || "" };

export const mostTokens = () => Number(settings.max_tokens) || 1024; // of an answer

export function sampling() {
  const given = { max_tokens: mostTokens() };
  for (const name of ["temperature", "top_p", "seed"]) if (settings[name] !== "") given[name] = Number(settings[name]);
  return given;
}

export function keepSettings() {
  const { key, ...rest } = settings;
  sessionStorage.setItem("key", key);
  return keep("settings", rest);
}

export async function recallSettings() {
  Object.assign(settings, (await kept("settings")) || {});
}

export function drawTheme() {
  document.documentElement.dataset.theme = settings.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

export function fillSettings(form) {
  for (const input of form.querySelectorAll("[name]")) {
    if (input.type === "checkbox") input.checked = settings[input.name];
    else input.value = settings[input.name];
  }
}

export function readSettings(form) {
  for (const input of form.querySelectorAll("[name]")) {
    settings[input.name] = input.type === "checkbox" ? input.checked : input.value.trim();
  }
  drawTheme();
}
