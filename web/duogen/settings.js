// The pack's entries in ComfyUI's settings; locales/*/settings.json has their words in other languages, and
// "settingsCategories" of main.json those of the headings.
// Keys stand here and never in a workflow, which is shared; the server reads them, and whether to preview
// (nodes/host/settings.py). What may stand in a workflow goes into new nodes (first_run.js): a workflow that was saved
// gives the same answer whatever is chosen here.

export const LANGUAGE = "DuoGen.Language";
export const FOLDER = "DuoGen.Folder";
export const DEFAULT_FOLDER = "duogen/answer";

export const SETTINGS = [
  {
    id: "DuoGen.Keys",
    category: ["DuoGen", "Servers", "Keys"],
    name: "Keys of language model servers",
    tooltip:
      "Which server gets which key, with commas between several: api.openai.com=OPENAI_API_KEY names an environment " +
      "variable, 192.168.0.5:8000=… is the key itself. A key goes to its own server alone, never into a workflow.",
    type: "text",
    defaultValue: "",
    attrs: { type: "password", autocomplete: "off", placeholder: "api.openai.com=OPENAI_API_KEY" },
  },
  {
    id: "DuoGen.LivePreview",
    category: ["DuoGen", "Answers", "Live"],
    name: "Live text and previews",
    tooltip:
      "Show text while it is written and an image while it is sampled. Off: the server does not make them, which saves " +
      "a little time; finished images still appear at once. With several users (--multi-user) it is always on.",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: FOLDER,
    category: ["DuoGen", "Documents", "Folder"],
    name: "Where documents are saved",
    tooltip:
      "The filename_prefix that new DuoGen Save Document nodes begin with, inside ComfyUI's output folder. Nodes that " +
      "are there, and saved workflows, keep theirs.",
    type: "text",
    defaultValue: DEFAULT_FOLDER,
    attrs: { placeholder: DEFAULT_FOLDER, maxlength: 200 },
  },
  {
    id: LANGUAGE,
    category: ["DuoGen", "Answers", "Language"],
    name: "Language of answers",
    tooltip:
      "Such as German. New DuoGen Prompt nodes get it as their instruction (the input system), so it stands in the " +
      "workflow. Empty: the model decides, most often for the language of the request. Leave it empty for the bundled " +
      "model, which knows English alone.",
    type: "text",
    defaultValue: "",
    attrs: { maxlength: 40 },
  },
];
