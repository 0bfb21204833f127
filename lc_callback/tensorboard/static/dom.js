// Elements of the page. Text is only ever set as text: names of runs, tags and layers may hold anything.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function select(label, options, value, onchange, properties = {}) {
  const box = el("select", { onchange: () => onchange(box.value), ...properties });
  for (const [key, text] of options) box.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, el("span", {}, label), box);
}

// At most one call of an animation frame, the last one.
export function coalesced(action) {
  let waiting = 0;
  return () => {
    if (!waiting) waiting = requestAnimationFrame(() => ((waiting = 0), action()));
  };
}

export function download(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
