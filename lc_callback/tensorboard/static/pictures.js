// Pictures of slices, with one slider for all of them, which follows the cursor.

import { Card, button } from "./card.js";
import { el } from "./dom.js";
import { elided, formatStep } from "./format.js";

const MOST_FIGURES = 6;
const NO_PICTURES = "Pictures of linear regions are not in these runs: SplinePartitionCallback() draws them.";
const FRAME = 400; // milliseconds of a picture in the film

export class PicturesCard extends Card {
  constructor(model) {
    super(model, { id: "pictures", title: "linear regions on slices" });
    this.slider = el("input", {
      type: "range",
      min: 0,
      max: 0,
      value: 0,
      step: 1,
      "aria-label": "step of the pictures",
      oninput: () => this.slide(),
    });
    this.play = button("▶", "Play the film", () => this.toggle());
    this.place = el("output", {}, "");
    this.figures = el("div", { class: "figures" });
    this.links = el("span", { class: "films" });
    this.controls = el("div", { class: "slider" }, this.play, this.slider, this.place, this.links);
    this.series = [];
    this.steps = [];
    this.films = [];
  }

  async load() {
    const { model } = this;
    const runs = model.selected();
    const key = JSON.stringify([runs, model.source.stamp]);
    if (key === this.key) return;
    const series = [];
    const films = [];
    for (const run of runs) {
      if (series.length >= MOST_FIGURES) break;
      if (!model.runs.get(run).tags.some((tag) => tag.includes("partition/")) && !model.runs.get(run).local) continue;
      const told = await model.source.pictures(run);
      const byName = new Map();
      for (const one of told.pictures) byName.set(one.series, [...(byName.get(one.series) ?? []), one]);
      for (const [name, pictures] of byName) series.push({ run, name, pictures, sampled: told.sampled });
      for (const film of told.films) films.push({ run, film });
    }
    this.series = series.slice(0, MOST_FIGURES);
    this.steps = [...new Set(this.series.flatMap((one) => one.pictures.map((picture) => picture.step)))].sort(
      (a, b) => a - b,
    );
    this.films = films;
    this.key = key;
  }

  get isEmpty() {
    return !this.steps.length;
  }

  draw() {
    if (this.isEmpty)
      return this.body.replaceChildren(...(this.isLoaded ? [el("p", { class: "note absent" }, NO_PICTURES)] : []));
    this.slider.max = this.steps.length - 1;
    if (!this.body.contains(this.controls)) {
      this.body.replaceChildren(this.controls, this.figures);
      this.slider.value = this.steps.length - 1;
    }
    this.figures.replaceChildren(
      ...this.series.map((one) => {
        one.image = el("img", { alt: "", decoding: "async" });
        one.caption = el("figcaption", {});
        return el("figure", {}, one.image, one.caption);
      }),
    );
    this.show();
    this.links.replaceChildren(
      ...this.films.map(({ run, film }) =>
        el(
          "a",
          {
            href: this.model.source.address(run, { file: film }),
            download: `${run.replace(/[^A-Za-z0-9._-]+/g, "_")}_film.gif`,
          },
          `film of ${elided(this.model.short(run), 30)}`,
        ),
      ),
    );
    const sampled = this.series.some((one) => one.sampled) ? "sampled: TensorBoard kept only some of the pictures" : "";
    this.say(sampled);
  }

  show() {
    const step = this.steps[this.slider.value];
    this.place.textContent = `step ${formatStep(step)}`;
    for (const { run, name, pictures, image, caption } of this.series) {
      const picture = pictures.filter((one) => one.step <= step).pop() ?? pictures[0];
      const address = this.model.source.address(run, picture);
      if (image.getAttribute("src") !== address) image.setAttribute("src", address);
      image.setAttribute("alt", `${name} of ${run} at step ${picture.step}`);
      caption.textContent = `${elided(this.model.short(run), 40)}, step ${formatStep(picture.step)}`;
      caption.title = `${run} ${name}`;
    }
  }

  slide() {
    this.show();
    const x = this.series.length ? this.model.x(this.series[0].run, this.steps[this.slider.value]) : NaN;
    if (Number.isFinite(x)) this.store.setCursor(x, true);
  }

  toggle() {
    this.playing = this.playing ? clearInterval(this.playing) : setInterval(() => this.next(), FRAME);
    this.play.textContent = this.playing ? "❚❚" : "▶";
  }

  next() {
    if (!this.element.isConnected || !this.isNear) return this.toggle();
    this.slider.value = (Number(this.slider.value) + 1) % this.steps.length;
    this.slide();
    return undefined;
  }

  moveCursor() {
    if (this.isEmpty || !this.store.cursor || !this.series.length) return;
    const step = this.model.step(this.series[0].run, this.store.cursor.x);
    let best = 0;
    this.steps.forEach((one, i) => one <= step && (best = i));
    if (Number(this.slider.value) === best) return;
    this.slider.value = best;
    this.show();
  }

  drop() {
    clearInterval(this.playing);
    super.drop();
  }
}
