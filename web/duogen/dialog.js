// A picture on its own, over the page: a modal <dialog>, so focus stays inside, Escape closes it and focus returns.
// In: the pictures of content.js and the index of the one to show. Arrow keys go to the others.

import { element } from "./content.js";

export function openPicture(pictures, index, strings) {
  const dialog = element("dialog", "duogen-dialog");
  const image = element("img");
  const caption = element("p", "duogen-caption");
  const link = element("a", "duogen-button", strings.newTab);
  link.target = "_blank";
  link.rel = "noopener";
  const download = element("a", "duogen-button", strings.downloadImage);
  const button = (text, label, action) => {
    const made = element("button", "duogen-button", text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  };

  const show = (wanted) => {
    index = (wanted + pictures.length) % pictures.length;
    const picture = pictures[index];
    dialog.setAttribute("aria-label", picture.alt);
    image.src = link.href = download.href = picture.url;
    download.download = `image_${picture.number}.png`;
    image.alt = picture.alt;
    caption.textContent = picture.alt;
  };
  const bar = element("div", "duogen-bar");
  if (pictures.length > 1) {
    bar.append(button("‹", strings.previous, () => show(index - 1)), button("›", strings.next, () => show(index + 1)));
  }
  bar.append(link, download, button("✕", strings.close, () => dialog.close()));
  dialog.append(bar, image, caption);

  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(index - 1);
    if (event.key === "ArrowRight") show(index + 1);
    event.stopPropagation(); // the front end's shortcuts are not for this dialog
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("close", () => dialog.remove());
  show(index);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
