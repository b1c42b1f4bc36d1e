// The words of the front end, in the language of ComfyUI's settings; word by word English where a language lacks one.
// In: "duogen" of locales/<language>/main.json, which ComfyUI serves at /i18n. Out: `strings`, filled anew at every change
// of the language, so whoever keeps it says the right thing from the next moment on; never keep a word of it.
//
//   "copy": "Copy text"                                        strings.copy
//   "image": "Image {number}"                                  strings.image({ number: 3 })
//   "tries": { "one": "{count} try", "other": "{count} tries" }  strings.tries({ count: 3 }), as Intl.PluralRules counts
//   "roles": { "user": "Request" }                             strings.roles.user
//
// What stands in { } are a user's and a model's texts as well: they are put in once and never read as a template.

export const strings = {};
const PLACE = /\{\w+\}/;
const PLACES = /\{(\w+)\}/g;
export const spoken = { locale: "en" }; // for what the server is asked to say
let languages = {}; // locale -> words as the files have them

// Called once, before the first node is made.
export async function loadWords(api) {
  const served = await (await api.fetchApi("/i18n")).json();
  languages = Object.fromEntries(Object.entries(served).map(([locale, words]) => [locale, words?.duogen ?? {}]));
}

// "zh-TW" without a folder of its own reads zh; what that has not, English.
export function speak(locale) {
  const wanted = String(locale ?? "en");
  const words = {};
  spoken.locale = wanted;
  for (const each of ["en", wanted.split("-")[0], wanted]) {
    if (Object.hasOwn(languages, each)) merge(words, languages[each], each);
  }
  for (const key of Object.keys(strings)) delete strings[key];
  Object.assign(strings, words);
}

function merge(into, words, locale) {
  for (const [key, value] of Object.entries(words)) {
    const forms = typeof value === "string" ? { other: value } : value;
    if (typeof forms?.other !== "string") {
      merge((into[key] = { ...into[key] }), forms ?? {}, locale);
      continue;
    }
    // English decides what is a function, so that a translation may leave a place out.
    const english = into[key] ?? (PLACE.test(forms.other) && (() => ""));
    into[key] = typeof english === "function" ? (values) => fill(form(forms, values, locale), values) : forms.other;
  }
}

const form = (forms, { count }, locale) => forms[new Intl.PluralRules(locale).select(Number(count))] ?? forms.other;
const fill = (template, values) => template.replace(PLACES, (_, name) => String(values[name] ?? ""));
