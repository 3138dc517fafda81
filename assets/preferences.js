// The theme that the visitor chose, the direction of the language, and what screen readers hear of jobs.
const THEME = "magic-canvas-theme"; // in the browser's storage
const RIGHT_TO_LEFT = ["ar"];
const ANNOUNCE_INTERVAL = 10_000; // milliseconds between announcements of a job's progress

Object.assign(magicCanvas, {
  theme: () => localStorage.getItem(THEME) ?? new URLSearchParams(location.search).get("__theme") ?? "system",
  setTheme(theme) {
    localStorage.setItem(THEME, theme);
    applyTheme();
  },
});

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => {
  const theme = magicCanvas.theme();
  document.body.classList.toggle("dark", theme === "dark" || (theme === "system" && systemIsDark.matches));
};
systemIsDark.addEventListener("change", applyTheme); // after Gradio's own
applyTheme();

document.documentElement.dir = RIGHT_TO_LEFT.includes(pageLanguage()) ? "rtl" : "ltr";

// Translates what Gradio's image editor writes in English only, with the texts of edit_notes.html.
const translateEditor = () => {
  const editor = document.getElementById("edit-image");
  const texts = JSON.parse(document.getElementById("editor-texts")?.dataset.texts ?? "{}");
  if (!editor) return;
  for (const name of ["title", "aria-label"])
    for (const element of editor.querySelectorAll(`[${name}]`)) {
      const text = texts[element.getAttribute(name)];
      if (text && text !== element.getAttribute(name)) element.setAttribute(name, text);
    }
  for (const element of editor.querySelectorAll("div:not(:has(*)), span:not(:has(*)), p:not(:has(*))")) {
    const text = texts[element.textContent.trim()];
    if (text && text !== element.textContent.trim()) element.textContent = text;
  }
};

// What screen readers hear. One region that stays, as a region that is replaced is not read aloud.
const announcements = {
  region: Object.assign(document.createElement("div"), { id: "announcements", className: "visually-hidden" }),
  jobs: {}, // the running job by the name of its panel
  last: 0,

  update() {
    for (const name of ["current-result", "edit-result"]) {
      const panel = document.getElementById(name);
      if (panel) this.read(name, panel);
    }
  },

  read(name, panel) {
    const progress = panel.querySelector("[data-job]");
    const result = panel.querySelector("[data-announce]");
    const isDue = progress?.dataset.job !== this.jobs[name] || Date.now() - this.last > ANNOUNCE_INTERVAL;
    if (progress && isDue) {
      this.region.textContent = progress.querySelector(".status-text").textContent;
      this.last = Date.now();
    }
    if (!progress && this.jobs[name] && result) this.region.textContent = result.dataset.announce;
    this.jobs[name] = progress?.dataset.job;
  },
};

magicCanvas.mounted.then(() => {
  document.documentElement.lang = pageLanguage();
  announcements.region.setAttribute("role", "status");
  document.querySelector(".gradio-container").append(announcements.region);
  const changes = { subtree: true, childList: true };
  new MutationObserver(() => {
    announcements.update();
    if (pageLanguage() !== "en") translateEditor();
  }).observe(document.getElementById("tabs"), changes);
});
