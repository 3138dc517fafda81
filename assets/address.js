// The address of what is shown: ?tab=gallery, or ?image=17 for an image that is open in the gallery.
const address = {
  opening: null, // the place of an address that is being opened
  isGoingBack: false, // until the browser has gone back, which takes a moment

  ofPage() {
    const query = new URLSearchParams(location.search);
    const image = query.get("image");
    return { tab: image ? "gallery" : query.get("tab") ?? "create", image };
  },

  shown() {
    const tab = document.querySelector("#tabs [role=tab][aria-selected=true]");
    const dialog = document.querySelector("#image-detail dialog[data-image]");
    return { tab: tab?.dataset.tabId ?? "create", image: dialog?.dataset.image ?? null };
  },

  // Open what the address names, after the page has loaded or on "back".
  open() {
    const place = this.ofPage();
    const shown = this.shown();
    if (isSamePlace(place, shown)) return;
    this.opening = place;
    if (shown.image && shown.image !== place.image)
      document.querySelector("#image-detail [data-action=close]")?.click();
    if (place.tab !== shown.tab)
      document.querySelector(`#tabs [role=tab][data-tab-id="${CSS.escape(place.tab)}"]`)?.click();
    this.openImage();
  },

  // The panel of the image exists once the gallery has been shown.
  openImage() {
    const trigger = magicCanvas.panels["image-detail"];
    if (!trigger || !this.opening?.image || this.opening.requested) return;
    this.opening.requested = true;
    trigger({ action: "open", image: this.opening.image });
  },

  update() {
    const shown = this.shown();
    const written = this.ofPage();
    if (this.opening) {
      this.openImage();
      if (isSamePlace(this.opening, shown)) this.opening = null;
      return;
    }
    if (this.isGoingBack || isSamePlace(shown, written)) return;
    const isClosed = written.image && !shown.image && shown.tab === written.tab;
    if (isClosed && history.state?.openedImage) {
      this.isGoingBack = true;
      return history.back();
    }
    const url = new URL(location);
    for (const name of ["tab", "image"]) url.searchParams.delete(name);
    if (shown.image) url.searchParams.set("image", shown.image);
    else if (shown.tab !== "create") url.searchParams.set("tab", shown.tab);
    // "Back" from the next or the previous image closes the dialog.
    const isNext = shown.image && written.image;
    if (isNext || isClosed) history.replaceState(history.state, "", url);
    else history.pushState({ openedImage: Boolean(shown.image) }, "", url);
  },
};

const isSamePlace = (one, other) => one.tab === other.tab && one.image === other.image;

magicCanvas.mounted.then(() => {
  const changes = { subtree: true, childList: true, attributeFilter: ["aria-selected", "data-image"] };
  new MutationObserver(() => address.update()).observe(document.getElementById("tabs"), changes);
  addEventListener("popstate", () => {
    if (!address.isGoingBack) return address.open();
    address.isGoingBack = false;
    address.update(); // another tab may have been opened meanwhile
  });
  // An address that cannot be opened, such as that of a deleted image, is forgotten with the next action.
  for (const name of ["pointerdown", "keydown"])
    addEventListener(name, () => (address.opening = null), true);
  address.open();
});
