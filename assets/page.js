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
