// What the page does in the browser alone: keys, and the drawer of the settings.
window.magicCanvas = {
  toggleDrawer(open) {
    const desk = document.getElementById("desk");
    const next = open ?? !desk.classList.contains("open");
    desk.classList.toggle("open", next);
    document.getElementById("drawer-button")?.setAttribute("aria-expanded", String(next));
    localStorage.setItem("magic-canvas-drawer", String(next));
  },
};

// The language that Gradio chose; for readers aloud, and for the shapes of Chinese characters.
const pageLanguage = () => {
  const known = Object.keys(window.gradio_config?.i18n_translations ?? {});
  const [base] = navigator.language.split("-");
  return [navigator.language, base].find((name) => known.includes(name)) ?? "en";
};

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (document.querySelector("dialog:modal")) return;
  event.preventDefault();
  // After a frame: what was typed last must have arrived in Gradio.
  requestAnimationFrame(() => setTimeout(() => document.getElementById("generate")?.click()));
});

// Gradio has no event for "all components stand": watch for the drawer's button once.
new MutationObserver((_, observer) => {
  const button = document.getElementById("drawer-button");
  if (!button || !document.getElementById("desk")) return;
  observer.disconnect();
  button.setAttribute("aria-controls", "drawer");
  document.documentElement.lang = pageLanguage();
  magicCanvas.toggleDrawer(localStorage.getItem("magic-canvas-drawer") === "true");
}).observe(document, { childList: true, subtree: true });

// A picture dropped anywhere on the page goes to the button that takes settings from one; the
// places that take files themselves keep theirs.
const forThePage = (event) =>
  [...(event.dataTransfer?.types ?? [])].includes("Files") &&
  !event.target.closest?.("#edit-picture, #import");
document.addEventListener("dragover", (event) => {
  const mine = forThePage(event);
  if (mine) event.preventDefault();
  const button = document.querySelector("#read-picture");
  document.documentElement.dataset.drop = button?.textContent.trim() ?? "";
  document.documentElement.classList.toggle("page-drop", mine);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.documentElement.classList.remove("page-drop");
});
document.addEventListener("drop", (event) => {
  document.documentElement.classList.remove("page-drop");
  const input = document.querySelector("#drawer input[type=file]");
  if (!forThePage(event) || !input) return;
  event.preventDefault();
  document.querySelector("#tabs [role=tab]")?.click(); // Create, where the settings are seen
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// What the editor keeps to itself: that a file is no picture, or has more than the frame it takes.
const frames = async (file) => {
  if (!window.ImageDecoder || !(await ImageDecoder.isTypeSupported(file.type))) return 1;
  const decoder = new ImageDecoder({ type: file.type, data: file.stream() });
  await decoder.tracks.ready;
  return decoder.tracks.selectedTrack.frameCount;
};
const tellOf = async (file) => {
  const picture = await createImageBitmap(file).catch(() => null);
  const facts = { broken: !picture, frames: picture && (await frames(file)) > 1 };
  picture?.close();
  for (const line of document.querySelectorAll("#edit-told [data-told]"))
    line.hidden = !facts[line.dataset.told];
};
for (const name of ["change", "drop"])
  document.addEventListener(
    name,
    (event) => {
      const [file] = event.dataTransfer?.files ?? event.target.files ?? [];
      if (file && event.target.closest?.("#edit-picture")) tellOf(file);
    },
    true,
  );
