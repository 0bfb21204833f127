// Called in a page that carries its data along.

import { App } from "./app.js";
import { el } from "./dom.js";
import { fromPage } from "./source.js";

export function render(data) {
  const root = el("div", { class: "app" });
  document.body.append(root);
  const app = new App(root, fromPage(data), { isLive: false, title: data.title });
  app.followHost();
  return app.start();
}
