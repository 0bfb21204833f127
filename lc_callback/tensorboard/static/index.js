// Called by TensorBoard in the frame of the tab.

import { App } from "./app.js";
import { el } from "./dom.js";
import { fromServer } from "./source.js";

export function render() {
  document.documentElement.lang = "en";
  document.title = "Dynamics";
  const style = el("link", { rel: "stylesheet", href: "./static/style.css" });
  const app = () => {
    const made = new App(root, fromServer());
    made.followHost();
    return made.start();
  };
  const root = el("div", { class: "app" });
  document.head.append(style);
  document.body.append(root);
  // Sizes are those of the style sheet; without it the page is plain, but it works.
  return new Promise((resolve) => {
    style.addEventListener("load", resolve);
    style.addEventListener("error", resolve);
  }).then(app);
}
