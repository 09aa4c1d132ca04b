"""Records the commit in what is built, for `megpt --version`; everything else is in pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class RecordCommit(build_py):
    def run(self) -> None:
        super().run()
        root = Path(__file__).parent
        if self.editable_mode or not (root / ".git").exists():
            return
        command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        target = Path(self.build_lib) / "megpt" / "COMMIT"
        if done.returncode == 0 and target.parent.is_dir():
            target.write_text(done.stdout)


setup(cmdclass={"build_py": RecordCommit})
