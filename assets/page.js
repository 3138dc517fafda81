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

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (document.querySelector("dialog:modal")) return;
  event.preventDefault();
  document.getElementById("generate")?.click();
});

// Gradio has no event for "all components stand": watch for the drawer's button once.
new MutationObserver((_, observer) => {
  const button = document.getElementById("drawer-button");
  if (!button || !document.getElementById("desk")) return;
  observer.disconnect();
  button.setAttribute("aria-controls", "drawer");
  magicCanvas.toggleDrawer(localStorage.getItem("magic-canvas-drawer") === "true");
}).observe(document, { childList: true, subtree: true });

// A picture dropped anywhere on the page goes to the button that takes settings from one.
const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  document.documentElement.classList.add("page-drop");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.documentElement.classList.remove("page-drop");
});
document.addEventListener("drop", (event) => {
  document.documentElement.classList.remove("page-drop");
  const input = document.querySelector("#drawer input[type=file]");
  if (!hasFile(event) || !input) return;
  event.preventDefault();
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
