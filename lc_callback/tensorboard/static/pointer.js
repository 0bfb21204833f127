// Cursor and zoom by the pointer.

import { nearest } from "./stats.js";

// The pointer moves the cursor of all charts; a drag zooms, a double click shows all, a click holds the cursor.
export function followPointer(card, root) {
  const { store } = card;
  let from = null;
  const placeOf = (event) => {
    const box = root.getBoundingClientRect();
    return Math.min(Math.max(event.clientX - box.left, card.drawn.plot.left), card.drawn.plot.right);
  };
  const snapped = (pixel) => {
    const x = card.drawn.x.at(pixel);
    const rows = card.rows();
    const i = nearest(rows, x);
    return i < 0 ? x : card.drawn.kind === "free" ? x : rows[nearestOnScreen(rows, i, pixel, card.drawn.x)];
  };
  const isTarget = (event) => card.drawn && event.target.classList.contains("target");
  root.addEventListener("pointerdown", (event) => {
    if (!isTarget(event) || event.button) return;
    from = placeOf(event);
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    if (!card.drawn || (from === null && !isTarget(event))) return;
    const at = placeOf(event);
    const brush = root.querySelector(".brush");
    if (from !== null) {
      brush.setAttribute("x", Math.min(from, at));
      brush.setAttribute("width", Math.abs(at - from));
    } else if (!store.cursor?.held) store.setCursor(snapped(at));
  });
  root.addEventListener("pointerup", (event) => {
    if (from === null || !card.drawn) return;
    const [left, right] = [Math.min(from, placeOf(event)), Math.max(from, placeOf(event))];
    from = null;
    root.querySelector(".brush")?.setAttribute("width", 0);
    if (right - left > 6) store.setZoom([Math.max(0, card.drawn.x.at(left)), card.drawn.x.at(right)]);
    else store.setCursor(snapped(left), !store.cursor?.held);
  });
  root.addEventListener("pointercancel", () => (from = null));
  root.addEventListener("dblclick", () => store.setZoom(null));
  root.addEventListener("pointerleave", () => {
    if (from === null && store.cursor && !store.cursor.held) store.setCursor(null);
  });
}

// Of a row and its neighbours the one that is nearest in pixels.
function nearestOnScreen(rows, i, pixel, x) {
  const near = [i - 1, i, i + 1].filter((k) => k >= 0 && k < rows.length);
  return near.reduce(
    (best, k) => (Math.abs(x.of(rows[k]) - pixel) < Math.abs(x.of(rows[best]) - pixel) ? k : best),
    near[0],
  );
}
