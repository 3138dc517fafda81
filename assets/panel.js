// Runs once in every HTML panel: sends clicks on [data-action] to Python and makes a dialog in
// the panel modal. `element`, `trigger` and `watch` are provided by Gradio.
element.addEventListener("click", (event) => {
  const target = event.target.closest("[data-action]");
  if (!target || target.disabled) return;
  event.preventDefault();
  if (target.dataset.confirm && !window.confirm(target.dataset.confirm)) return;
  const dialog = target.closest("dialog");
  if (dialog && target.dataset.action === "close") dialog.close(); // restores the focus
  trigger("click", { ...target.dataset });
});

// The slider between two compared images
element.addEventListener("input", (event) => {
  if (!event.target.matches("[data-split]")) return;
  event.target.parentElement.style.setProperty("--split", `${event.target.value}%`);
});

const showModal = () => {
  const dialog = element.querySelector("dialog");
  if (!dialog || dialog.matches(":modal")) return;
  dialog.close();
  dialog.showModal();
  dialog.addEventListener("cancel", () => trigger("click", { action: "close" }));
  dialog.addEventListener("click", (event) => {
    if (event.target !== dialog) return; // a click on the backdrop has the dialog as its target
    dialog.close();
    trigger("click", { action: "close" });
  });
};
watch("value", showModal);
