// Buttons of generated images that need no server: the lightbox, copying a prompt, menus.

// The lightbox: one <dialog> for the whole page, as the result is replaced while it is open.
const lightbox = {
  images: [], // of {source, text}
  index: 0,

  open(button) {
    const figure = button.closest("figure");
    const shown = [...figure.querySelectorAll("[data-lightbox]")];
    const recent = [...document.querySelectorAll(".recent [data-full]")].filter((each) => each.checkVisibility());
    const source = button.dataset.lightbox;
    const isRecent = shown.length === 1 && recent.some((each) => each.dataset.full === source);
    const describe = (each) => each.querySelector("img").alt || each.dataset.prompt || "";
    this.images = (isRecent ? recent : shown).map((each) => ({
      source: each.dataset.full ?? each.dataset.lightbox,
      text: describe(each),
    }));
    this.index = this.images.findIndex((each) => each.source === source);
    this.element ??= this.create();
    this.show();
    this.element.showModal();
  },

  create() {
    const template = document.getElementById("lightbox-template");
    const dialog = template.content.firstElementChild.cloneNode(true);
    document.querySelector(".gradio-container").append(dialog); // whose variables hold the theme
    dialog.addEventListener("click", (event) => {
      const step = event.target.closest("[data-step]");
      if (step) this.step(Number(step.dataset.step));
      else if (!event.target.closest("img, a")) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      const forward = getComputedStyle(dialog).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") this.step(event.key === forward ? 1 : -1);
    });
    return dialog;
  },

  step(by) {
    this.index = (this.index + by + this.images.length) % this.images.length;
    this.show();
  },

  show() {
    const { source, text } = this.images[this.index];
    const find = (name) => this.element.querySelector(name);
    find("img").src = source;
    find("img").alt = text;
    find("a").href = source;
    find(".prompt").textContent = text;
    find(".position").textContent = this.images.length > 1 ? `${this.index + 1} / ${this.images.length}` : "";
    for (const button of this.element.querySelectorAll("[data-step]")) button.hidden = this.images.length < 2;
  },
};

// navigator.clipboard exists only on localhost and over HTTPS.
const copyText = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
};

const showCopied = (button) => {
  const label = button.querySelector(".label");
  const text = label.textContent;
  label.textContent = button.dataset.copied;
  label.setAttribute("role", "status");
  setTimeout(() => (label.textContent = text), 1500);
};

const closeMenus = (except) => {
  for (const menu of document.querySelectorAll(".action-menu[open]")) if (menu !== except) menu.open = false;
};

document.addEventListener("click", (event) => {
  closeMenus(event.target.closest("summary")?.parentElement);
  const copy = event.target.closest("[data-copy]");
  if (copy && copy.dataset.copied !== copy.querySelector(".label").textContent)
    copyText(copy.dataset.copy).then(() => showCopied(copy));
  const image = event.target.closest("[data-lightbox]");
  if (image) lightbox.open(image);
});
document.addEventListener("keydown", (event) => {
  const menu = document.querySelector(".action-menu[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
