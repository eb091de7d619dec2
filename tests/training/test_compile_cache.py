import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
import jax
from brain_service.training.compile_cache import keep_compiled
keep_compiled(Path(sys.argv[1]))
jax.jit(lambda x: x * 3.0)(1.0)
"""


def compile_something(cache_dir: Path, elsewhere: Path | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if elsewhere is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(elsewhere)
    subprocess.run([sys.executable, "-c", PROGRAM, str(cache_dir)], env=environment, check=True)


def test_programs_are_kept_under_the_cache_directory(tmp_path: Path) -> None:
    compile_something(tmp_path / "cache", None)
    assert list((tmp_path / "cache" / "xla").iterdir())


def test_a_place_that_jax_was_told_stays(tmp_path: Path) -> None:
    compile_something(tmp_path / "cache", tmp_path / "told")
    assert list((tmp_path / "told").iterdir()) and not (tmp_path / "cache").exists()
