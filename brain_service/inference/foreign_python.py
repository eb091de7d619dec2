"""Starts a worker on another Python than the daemon's: `/usr/bin/python3 -P foreign_python.py --fd N`.

Hailo's runtime lives in the system's Python with a NumPy of its own. Where this package is installed lie the
daemon's other packages, built for another NumPy or another Python, so that folder must not be on the path: the
package alone is made known, by its place.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "brain_service", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        sys.exit(f"no package at {folder}")
    package = importlib.util.module_from_spec(spec)
    sys.modules["brain_service"] = package
    spec.loader.exec_module(package)
    runpy.run_module("brain_service.inference.worker", run_name="__main__", alter_sys=True)
