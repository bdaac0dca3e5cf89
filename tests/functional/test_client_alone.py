"""`pip install raksha[client]` in an environment of its own: the client works without the rest of Raksha."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

SOURCE = Path(__file__).parents[2]
#: what hypervisors and the service are made of
NOT_NEEDED = ("libvirt", "nbd", "flask", "sqlalchemy", "oslo_messaging", "marshmallow", "bcrypt", "novaclient")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_installed_and_works_alone(tmp_path: Path) -> None:
    # a build leaves files in the folder that it is made from
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    for name in ("raksha", "alembic"):
        copytree(SOURCE / name, source / name, ignore=ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        (source / name).write_bytes((SOURCE / name).read_bytes())
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    programs = tmp_path / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--root-user-action=ignore", f"{source}[client]"]  # fmt: skip
    subprocess.run(install, check=True, timeout=800, capture_output=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "RAKSHA_", "PYTHON"))}

    def raksha(*words: str) -> tuple[int, str]:
        found = subprocess.run([programs / "raksha", *words], env={**clean, "HOME": str(home)}, capture_output=True,
                               text=True, timeout=120)  # fmt: skip
        assert "Traceback" not in found.stderr, found.stderr
        return found.returncode, found.stdout + found.stderr

    look = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    there = subprocess.run([programs / "python", "-c", look, *NOT_NEEDED], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "[]"
    assert raksha("--version")[0] == 0
    code, told = raksha("--help")
    assert code == 0 and "raksha vm list" in told
    assert raksha("job", "create", "--help")[0] == 0
    code, told = raksha("--state-dir", str(tmp_path), "vm", "list")
    assert code == 2 and "cannot be read" in told
    (tmp_path / "users.admin-password").write_text("secret\n")
    code, told = raksha("--state-dir", str(tmp_path), "--url", "http://127.0.0.1:1", "vm", "list")
    assert code == 1 and "does the service run" in told
    code, told = raksha("local", "vms")
    assert code == 2 and "not installed" in told
