// Behaviour of the whole page in the browser: keys, the settings panel, dropped files.
window.magicCanvas = {
  toggleSettings(open) {
    const workspace = document.getElementById("workspace");
    const next = open ?? !workspace.classList.contains("open");
    workspace.classList.toggle("open", next);
    document.getElementById("settings-button")?.setAttribute("aria-expanded", String(next));
    localStorage.setItem("magic-canvas-settings-open", String(next));
  },
};

// The language that Gradio chose, for screen readers and for the glyphs of Chinese characters.
// `gradio_config` is private to Gradio: see tests/ui/test_gradio_private_names.py.
const pageLanguage = () => {
  const known = Object.keys(window.gradio_config?.i18n_translations ?? {});
  const [base] = navigator.language.split("-");
  return [navigator.language, base].find((name) => known.includes(name)) ?? "en";
};

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (document.querySelector("dialog:modal")) return;
  event.preventDefault();
  const buttons = [...document.querySelectorAll("#generate, #edit-generate, #compare-start")];
  const button = buttons.find((each) => each.checkVisibility()); // that of the open tab
  // After a frame, so that Gradio has received what was typed last.
  if (button) requestAnimationFrame(() => setTimeout(() => button.click()));
});

// Gradio has no event for "all components are mounted": wait for the settings button once.
new MutationObserver((_, observer) => {
  const button = document.getElementById("settings-button");
  if (!button || !document.getElementById("workspace")) return;
  observer.disconnect();
  button.setAttribute("aria-controls", "settings-panel");
  document.documentElement.lang = pageLanguage();
  magicCanvas.toggleSettings(localStorage.getItem("magic-canvas-settings-open") === "true");
}).observe(document, { childList: true, subtree: true });

// An image dropped anywhere on the page is uploaded to the button that loads settings from it,
// except on components that take files themselves.
const isPageDrop = (event) =>
  [...(event.dataTransfer?.types ?? [])].includes("Files") &&
  !event.target.closest?.("#edit-image, #import");
document.addEventListener("dragover", (event) => {
  const pageDrop = isPageDrop(event);
  if (pageDrop) event.preventDefault();
  const button = document.querySelector("#load-settings");
  document.documentElement.dataset.drop = button?.textContent.trim() ?? "";
  document.documentElement.classList.toggle("page-drop", pageDrop);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.documentElement.classList.remove("page-drop");
});
document.addEventListener("drop", (event) => {
  document.documentElement.classList.remove("page-drop");
  const input = document.querySelector("#settings-panel input[type=file]");
  if (!isPageDrop(event) || !input) return;
  event.preventDefault();
  document.querySelector("#tabs [role=tab]")?.click(); // the Create tab, which has the settings
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// Gradio's image editor does not report broken files, and uses the first frame of animations.
const countFrames = async (file) => {
  if (!window.ImageDecoder || !(await ImageDecoder.isTypeSupported(file.type))) return 1;
  const decoder = new ImageDecoder({ type: file.type, data: file.stream() });
  await decoder.tracks.ready;
  return decoder.tracks.selectedTrack.frameCount;
};
const showNotes = async (file) => {
  const bitmap = await createImageBitmap(file).catch(() => null);
  const applies = { broken: !bitmap, animated: bitmap && (await countFrames(file)) > 1 };
  bitmap?.close();
  for (const note of document.querySelectorAll("#edit-notes [data-note]"))
    note.hidden = !applies[note.dataset.note];
};
for (const name of ["change", "drop"])
  document.addEventListener(
    name,
    (event) => {
      const [file] = event.dataTransfer?.files ?? event.target.files ?? [];
      if (file && event.target.closest?.("#edit-image")) showNotes(file);
    },
    true,
  );
