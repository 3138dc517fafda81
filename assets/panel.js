// Called once with every HTML panel: sends clicks on [data-action] to Python, with the fields of its form,
// and makes a dialog in the panel modal. `trigger` and `watch` are Gradio's, of this panel.
magicCanvas.bindPanel = (element, trigger, watch) => {
  let scrollToTop = false;
  element.addEventListener("click", (event) => {
    const target = event.target.closest("[data-action]");
    if (!target || target.disabled) return;
    const form = target.type === "submit" ? target.form : null;
    if (form && !form.reportValidity()) return;
    event.preventDefault();
    if (target.dataset.confirm && !window.confirm(target.dataset.confirm)) return;
    const dialog = target.closest("dialog");
    if (dialog && target.dataset.action === "close") dialog.close(); // restores the focus
    magicCanvas.dialogClosed = target.dataset.action === "close";
    scrollToTop = "scroll" in target.dataset;
    const fields = form ? Object.fromEntries(new FormData(form)) : {};
    trigger("click", { ...fields, ...target.dataset, shift: event.shiftKey });
  });

  magicCanvas.panels[element.closest(".block").id] = (data) => {
    magicCanvas.dialogClosed = false;
    trigger("click", data);
  };

  // The slider between two compared images
  element.addEventListener("input", (event) => {
    if (!event.target.matches("[data-split]")) return;
    event.target.parentElement.style.setProperty("--split", `${event.target.value}%`);
  });

  // An arrow key presses the button that names it in [data-key], except where the key has a meaning already.
  const MIRRORED = { ArrowLeft: "ArrowRight", ArrowRight: "ArrowLeft" };
  element.addEventListener("keydown", (event) => {
    if (!(event.key in MIRRORED) || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.closest("input, select, textarea")) return;
    const key = getComputedStyle(element).direction === "rtl" ? MIRRORED[event.key] : event.key;
    element.querySelector(`[data-key="${key}"]`)?.click();
  });

  // An export is a download: its menu closes, and Python confirms it. A link starts it, as Gradio closes
  // its connection when a form leaves the page, even for a download.
  element.addEventListener("submit", (event) => {
    const menu = event.target.closest("details.export");
    if (!menu) return;
    event.preventDefault();
    const link = document.createElement("a");
    link.href = `export.zip?${new URLSearchParams(new FormData(event.target))}`;
    link.download = "";
    link.click();
    menu.open = false;
    trigger("click", { action: "exported" });
  });

  const onUpdate = () => {
    if (scrollToTop) element.scrollIntoView({ block: "start" });
    scrollToTop = false;
    const dialog = element.querySelector("dialog[open]");
    if (!dialog || dialog.matches(":modal")) return;
    dialog.close();
    if (magicCanvas.dialogClosed) return; // while its content was on the way
    dialog.showModal();
    const closed = () => {
      magicCanvas.dialogClosed = true;
      trigger("click", { action: "close" });
    };
    dialog.addEventListener("cancel", closed);
    dialog.addEventListener("click", (event) => {
      if (event.target !== dialog) return; // a click on the backdrop has the dialog as its target
      dialog.close();
      closed();
    });
  };
  watch("value", onUpdate);
};
