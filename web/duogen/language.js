// Follows the language of ComfyUI's settings: the words of the page, and what the server says to this page's client.
// Errors and progress are sentences of the server (nodes/host/language.py), so it has to know.

import { loadWords, speak, strings } from "./strings.js";

const LOCALE = "Comfy.Locale";

export async function followLanguage(app, api) {
  const locale = () => app.extensionManager.setting.get(LOCALE) ?? "en";
  await loadWords(api);
  speak(locale());
  let told = "";
  const tell = async () => {
    const said = JSON.stringify({ client_id: api.clientId ?? api.initialClientId, locale: locale() });
    if (!JSON.parse(said).client_id || said === told) return;
    told = said;
    await api.fetchApi("/duogen/language", { method: "POST", body: said }).catch(() => (told = ""));
  };
  app.ui.settings.addEventListener(`${LOCALE}.change`, () => {
    speak(locale());
    tell();
  });
  tell();
  api.addEventListener("status", tell); // the first one names the client, if it is still to come
  api.addEventListener("reconnected", () => {
    told = ""; // perhaps another server
    tell();
  });
}

// The choices of our widgets in the user's words. What a workflow holds is the value, in every language the same.
export function labelOptions(node) {
  const label = (value) => (Object.hasOwn(strings.options ?? {}, value) ? strings.options[value] : String(value ?? ""));
  for (const { name, options } of node.widgets ?? []) {
    const ours = name !== "control_after_generate" && Array.isArray(options?.values);
    const values = ours ? options.values : [];
    if (values.some((value) => label(value) !== value)) options.getOptionLabel = label;
  }
}
