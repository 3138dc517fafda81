// Behaviour of the whole page in the browser: keys, the settings panel, dropped files.
window.magicCanvas = {
  panels: {}, // functions that send an action to Python, by the panel's id: see panel.js
  toggleSettings(open) {
    const workspace = document.getElementById("workspace");
    const next = open ?? !workspace.classList.contains("open");
    workspace.classList.toggle("open", next);
    document.getElementById("settings-button")?.setAttribute("aria-expanded", String(next));
    localStorage.setItem("magic-canvas-settings-open", String(next));
  },
  toggleFilters() {
    const open = document.getElementById("filters").classList.toggle("open");
    document.getElementById("filters-button").setAttribute("aria-expanded", String(open));
  },
};

// The language that Gradio chose, for screen readers and for the glyphs of Chinese characters.
// `gradio_config` is private to Gradio: see tests/ui/test_gradio_private_names.py.
const pageLanguage = () => {
  const known = Object.keys(window.gradio_config?.i18n_translations ?? {});
  const [base] = navigator.language.split("-");
  return [navigator.language, base].find((name) => known.includes(name)) ?? "en";
};

// Before Gradio's own, as Enter would also change a checkbox that has the focus.
const pressButton = (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (document.querySelector("dialog:modal")) return;
  const buttons = [...document.querySelectorAll("#generate, #edit-generate, #compare-start")];
  const button = buttons.find((each) => each.checkVisibility()); // that of the open tab
  if (!button) return;
  event.preventDefault();
  event.stopPropagation();
  // After a frame, so that Gradio has received what was typed last.
  requestAnimationFrame(() => setTimeout(() => button.click()));
};
document.addEventListener("keydown", pressButton, true);

// Gradio has no event for "all components are mounted": wait for the settings button once.
magicCanvas.mounted = new Promise((resolve) => {
  new MutationObserver((_, observer) => {
    if (!document.getElementById("settings-button") || !document.getElementById("workspace")) return;
    observer.disconnect();
    resolve();
  }).observe(document, { childList: true, subtree: true });
});
magicCanvas.mounted.then(() => {
  document.getElementById("settings-button").setAttribute("aria-controls", "settings-panel");
  magicCanvas.toggleSettings(localStorage.getItem("magic-canvas-settings-open") === "true");
});

// Files dropped anywhere on the page, except on components that take files themselves: the settings of
// an image are loaded, in the gallery it can be imported instead.
const isPageDrop = (event) =>
  [...(event.dataTransfer?.types ?? [])].includes("Files") && !event.target.closest?.("#edit-image, #import");
const galleryIsOpen = () => document.getElementById("gallery")?.checkVisibility();
const upload = (selector, files) => {
  const input = document.querySelector(selector);
  if (!input) return;
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
};
const loadSettings = (files) => {
  document.querySelector("#tabs [role=tab]")?.click(); // the Create tab, which has the settings
  upload("#settings-panel input[type=file]", files);
};
const importFiles = (files) => upload("input[type=file][accept*=zip]", files);
document.addEventListener("dragover", (event) => {
  const pageDrop = isPageDrop(event);
  if (pageDrop) event.preventDefault();
  const button = document.querySelector(galleryIsOpen() ? "#import" : "#load-settings");
  document.documentElement.dataset.drop = button?.textContent.trim() ?? "";
  document.documentElement.classList.toggle("page-drop", pageDrop);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.documentElement.classList.remove("page-drop");
});
document.addEventListener("drop", (event) => {
  document.documentElement.classList.remove("page-drop");
  if (!isPageDrop(event)) return;
  event.preventDefault();
  const held = new DataTransfer(); // the event's own list is empty after the event
  for (const file of event.dataTransfer.files) held.items.add(file);
  const { files } = held;
  const question = document.querySelector("#drop-question dialog");
  if (!galleryIsOpen() || !question) loadSettings(files);
  else if (files.length !== 1 || !files[0].type.startsWith("image/")) importFiles(files);
  else {
    question.onclick = ({ target }) => {
      const answer = target === question ? "" : target.dataset.drop;
      if (answer === undefined) return;
      question.close();
      if (answer === "import") importFiles(files);
      else if (answer === "settings") loadSettings(files);
    };
    question.showModal();
  }
});

// The result of Edit stands below the editor.
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("#edit-generate")) return;
  const output = document.getElementById("edit-result");
  new MutationObserver((_, observer) => {
    const progress = output.querySelector(".result-progress");
    if (!progress) return;
    observer.disconnect();
    progress.scrollIntoView({ block: "nearest" });
  }).observe(output, { childList: true, subtree: true });
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
