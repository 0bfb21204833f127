"""First paint, bytes, memory and start of the Dynamics tab, inside TensorBoard, in headless Chromium.

    python benchmarks/dynamics_tab.py [--repeats 3]

Needs the library installed, playwright and a Chromium. The logs are written to a scratch folder: 20 runs of 200 tags
and 1,000 steps, and 3 runs of 40 tags; event files only, so that all comes through TensorBoard.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

SIZES = {"20 runs x 200 tags": (20, 200), "3 runs x 40 tags": (3, 40)}
STEPS = 1000
OURS = ["lc/train", "lc/test", "lc/random", "clean_acc/train", "clean_acc/test", "robust_acc/test_eps0.1", "lc/seconds"]
OURS += [f"{measure}/net.{i}" for measure in ("rank", "effective_rank", "lc_layer/train") for i in range(5)]

# Times since the module of the tab was loaded, what was sent until then, and what is in memory.
WATCH = """
new MutationObserver((_, observer) => {
    if (!document.querySelector("path.line")) return;
    requestAnimationFrame(() => setTimeout(() => (window.painted = performance.now())));
    observer.disconnect();
}).observe(document, { childList: true, subtree: true });
"""
LOADED = """() => {
    const all = performance.getEntriesByType("resource");
    const modules = all.filter((one) => one.name.endsWith(".js"));
    const sent = all.reduce((sum, one) => sum + one.transferSize, 0);
    const loaded = Math.max(...modules.map((one) => one.responseEnd));
    return { paint: window.painted - loaded, sent, requests: all.length };
}"""
# Of the cards in view.
ALL_DRAWN = """() => [...document.querySelectorAll("section.card")].every((card) => {
    const { top, bottom } = card.getBoundingClientRect();
    return bottom < 0 || top > innerHeight || card.offsetParent === null || card.dataset.state === "ready";
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many is printed")
    args = parser.parse_args()
    print(f"start of TensorBoard: {start_cost(args.repeats):.3f} s more")
    with tempfile.TemporaryDirectory() as scratch:
        for name, (n_runs, n_tags) in SIZES.items():
            logdir = Path(scratch) / name.replace(" ", "_")
            write_logs(logdir, n_runs, n_tags)
            found = [measured(logdir, n_runs) for _ in range(args.repeats)]
            best = {key: min(one[key] for one in found) for key in found[0]}
            print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in best.items()))


def start_cost(repeats: int) -> float:
    """Seconds to import the plugin and to make it, where TensorBoard itself is imported."""
    code = (
        "import time, tensorboard.default, tensorboard.program, tensorboard.plugins.base_plugin as base, argparse\n"
        "start = time.perf_counter()\n"
        "from lc_callback.tensorboard.plugin import DynamicsPlugin\n"
        "DynamicsPlugin(base.TBContext(logdir='.', flags=argparse.Namespace())).get_plugin_apps()\n"
        "print(time.perf_counter() - start)"
    )
    ask = [sys.executable, "-c", code]
    return min(float(subprocess.run(ask, capture_output=True, text=True, check=True).stdout) for _ in range(repeats))


def write_logs(logdir: Path, n_runs: int, n_tags: int) -> None:
    """One run is written, and copied."""
    tags = [*OURS, *(f"group{i // 10}/metric{i}" for i in range(n_tags))][:n_tags]
    first = logdir / "model_seed0"
    writer = EventFileWriter(str(first))
    for step in range(STEPS):
        values = [Summary.Value(tag=tag, simple_value=(i + 1) / (step + 1)) for i, tag in enumerate(tags)]
        writer.add_event(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=values)))
    writer.close()
    for i in range(1, n_runs):
        shutil.copytree(first, logdir / f"model_seed{i}")


def measured(logdir: Path, n_runs: int) -> dict[str, float]:
    """Of one start of TensorBoard and one visit of the tab."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--logdir", str(logdir), "--port", str(port), "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *address], **quiet)
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.add_init_script(WATCH)
            wait_for_all(page, f"http://127.0.0.1:{port}", n_runs)
            page.goto(f"http://127.0.0.1:{port}/#lc_dynamics")
            page.wait_for_selector("iframe", timeout=60_000)
            frame = next(one for one in page.frames if one != page.main_frame)
            frame.wait_for_function("window.painted", timeout=60_000)
            page.wait_for_timeout(2000)
            found = frame.evaluate(LOADED)
            cards = scrolled(page, frame)
            session = page.context.new_cdp_session(page)
            session.send("HeapProfiler.collectGarbage")
            heap = session.send("Runtime.getHeapUsage")["usedSize"]
            later = frame.evaluate(LOADED)
            return {
                "first paint [s]": found["paint"] / 1000,
                "requests": found["requests"],
                "first view [MB]": found["sent"] / 2**20,
                "cards": cards,
                "heap after scrolling [MB]": heap / 2**20,
                "sent in all [MB]": later["sent"] / 2**20,
            }
    finally:
        server.terminate()
        server.wait()


def wait_for_all(page: Any, url: str, n_runs: int) -> None:
    """Until TensorBoard has read all runs: what it takes itself is not the tab's."""
    runs = f"{url}/data/plugin/lc_dynamics/runs"
    for _ in range(600):
        try:
            told = page.request.get(runs).json()["runs"]
            if len(told) == n_runs and all(run["last"] == STEPS - 1 for run in told):
                return
        except Exception:  # it is starting
            pass
        time.sleep(0.2)
    raise TimeoutError("TensorBoard has not read the logs in two minutes.")


def scrolled(page: Any, frame: Any) -> int:
    """The number of cards, after all of them have been in view."""
    height = frame.evaluate("document.documentElement.scrollHeight")
    for top in range(0, 3 * height, 800):
        if top > frame.evaluate("document.documentElement.scrollHeight"):
            break
        frame.evaluate(f"window.scrollTo(0, {top})")
        frame.wait_for_function(ALL_DRAWN, timeout=60_000)
    return int(frame.evaluate("document.querySelectorAll('section.card').length"))


if __name__ == "__main__":
    main()
