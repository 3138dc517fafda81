// Runs once in every panel of the page: hands clicks on [data-action] to Python and keeps a
// dialog, where the panel draws one, modal. `element`, `trigger` and `watch` are Gradio's.
element.addEventListener("click", (event) => {
  const target = event.target.closest("[data-action]");
  if (!target || target.disabled) return;
  event.preventDefault();
  if (target.dataset.confirm && !window.confirm(target.dataset.confirm)) return;
  const dialog = target.closest("dialog");
  if (dialog && target.dataset.action === "close") dialog.close(); // gives the focus back
  trigger("click", { ...target.dataset });
});

// The curtain between two compared pictures
element.addEventListener("input", (event) => {
  if (!event.target.matches("[data-split]")) return;
  event.target.parentElement.style.setProperty("--split", `${event.target.value}%`);
});

const keepModal = () => {
  const dialog = element.querySelector("dialog");
  if (!dialog || dialog.matches(":modal")) return;
  dialog.close();
  dialog.showModal();
  dialog.addEventListener("cancel", () => trigger("click", { action: "close" }));
  dialog.addEventListener("click", (event) => {
    if (event.target !== dialog) return; // the backdrop belongs to the dialog itself
    dialog.close();
    trigger("click", { action: "close" });
  });
};
watch("value", keepModal);
