"""Write ``lc_callback/tensorboard/static/d3.js``: the functions of d3 that the Dynamics tab calls, and their licences.

    python tools/vendor_d3.py

Needs ``npm``, which fetches the packages from the registry that it is set up for. The result is one module, not
minified, so that it can be read and compared; run the script again to update it, and commit what changed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

STATIC = Path(__file__).parents[1] / "lc_callback" / "tensorboard" / "static"
VERSIONS = {"d3-array": "3.2.4", "d3-scale": "4.0.2", "d3-shape": "3.2.0"}
BUNDLER = {"esbuild": "0.28.2"}
USED = {
    "d3-array": ["bisectCenter", "quantileSorted", "ticks"],
    "d3-scale": ["scaleLinear", "scaleLog"],
    "d3-shape": ["area", "line"],
}


def main() -> None:
    """Install into a scratch folder, bundle what is used, and write it with the licences."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": {**VERSIONS, **BUNDLER}}))
        exports = (f'export {{ {", ".join(names)} }} from "{package}";' for package, names in USED.items())
        (folder / "used.js").write_text("\n".join(exports))
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        bundle = ["npx", "esbuild", "used.js", "--bundle", "--format=esm", "--legal-comments=none", "--log-level=error"]
        code = subprocess.run(bundle, cwd=folder, check=True, capture_output=True, text=True).stdout
        packages = sorted(path for path in (folder / "node_modules").iterdir() if (path / "LICENSE").exists())
        packages = [path for path in packages if path.name not in BUNDLER]
        named = [f"{path.name} {json.loads((path / 'package.json').read_text())['version']}" for path in packages]
        header = f"// Written by tools/vendor_d3.py from {', '.join(named)}. Licences: d3.LICENSE.\n"
        licences = [
            f"{name}\n\n{(path / 'LICENSE').read_text().strip()}\n" for name, path in zip(named, packages, strict=True)
        ]
    (STATIC / "d3.js").write_text(header + code)
    (STATIC / "d3.LICENSE").write_text(f"\n{'-' * 80}\n\n".join(licences))


if __name__ == "__main__":
    main()
