"""Install the wheel, and nothing else, in a fresh environment, and generate a video with it.

Shows that the lean runtime is complete: the bundle is in the wheel, the declared dependencies are
enough, and neither torch nor any other package of the export is there.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROMPT = "a red circle moves left on a gray background"
EXPORT_ONLY = ("torch", "onnx", "onnxscript", "diffusers", "transformers")


def main(folder: Path) -> None:
    """Check the one wheel in `folder`; exits non-zero with the failing command's output."""
    (wheel,) = folder.resolve().glob("mutoscope-*.whl")
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        quiet = ["--quiet", "--disable-pip-version-check"]
        run(python, "-m", "pip", "install", *quiet, str(wheel), cwd=scratch)
        for package in EXPORT_ONLY:
            code = (
                f"import importlib.util, sys; sys.exit(bool(importlib.util.find_spec({package!r})))"
            )
            run(python, "-c", code, cwd=scratch)
        output = Path(scratch) / "out.mp4"
        mutoscope = environment / "bin" / "mutoscope"
        report = json.loads(run(mutoscope, "generate", PROMPT, "-o", output, "--json", cwd=scratch))
        print(json.dumps(report, indent=2))
        size = output.stat().st_size
        print(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) wrote a video of {size} bytes")


def run(*command: str | Path, cwd: str) -> str:
    """Return the standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nfailed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
