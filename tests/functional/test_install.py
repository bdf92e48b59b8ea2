"""Every way to install that the README shows brings the same deployable files, and only them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from node_on_salt import DEPLOYED

REPO = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.executable).parent


def deployable():
    found = set()
    for name in DEPLOYED:
        for path in (REPO / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(str(path.relative_to(REPO)))
    return found


def files(root):
    return {
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


@pytest.fixture
def checkout(tmp_path):
    """The working tree's tracked files, as a clone would have them."""
    path = tmp_path / "cbsd-monit-formula"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPO / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((REPO / name).read_bytes())
    return path


def test_make_install(checkout, tmp_path):
    subprocess.run(
        ["make", "install", f"ROOT={tmp_path / 'root'}"],
        cwd=checkout,
        check=True,
        capture_output=True,
    )
    assert files(tmp_path / "root") == deployable()


def test_spm(checkout, tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    keys = {
        "spm_build_dir": "build",
        "formula_path": "formulas",
        "pillar_path": "pillar",
        "reactor_path": "reactor",
        "spm_cache_dir": "cache",
        "spm_db": "packages.db",
        "spm_logfile": "spm.log",
        "spm_repos_config": "repos",
    }
    lines = [f"{key}: {tmp_path / value}" for key, value in keys.items()]
    (conf / "spm").write_text("\n".join([*lines, "spm_build_exclude: [.git, .venv, build]", ""]))
    for name in ("build", "cache"):
        (tmp_path / name).mkdir()
    (conf / "minion").write_text(f"root_dir: {tmp_path}\nfile_client: local\n")

    def spm(*args):
        argv = [str(BIN / "spm"), "-c", str(conf), "-y", *args]
        return subprocess.run(
            argv, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
        )

    spm("build", str(checkout))
    (package,) = (tmp_path / "build").glob("cbsd_monit-*.spm")
    spm("local", "install", str(package))
    installed = files(tmp_path / "formulas")
    assert deployable() <= installed
    assert not [name for name in installed if name.startswith(("tests", ".git"))]
    assert os.path.exists(tmp_path / "pillar/cbsd_monit.sls.orig")


def test_nothing_deployed_needs_what_is_not():
    for name in deployable():
        text = (REPO / name).read_text(encoding="utf-8")
        assert "tests/" not in text and "import sim" not in text, name


def test_formula_project_and_changelog_name_the_same_version():
    formula = yaml.safe_load((REPO / "FORMULA").read_text())
    project = (REPO / "pyproject.toml").read_text()
    changes = (REPO / "CHANGELOG.md").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.M).group(1)
    assert formula["version"] == version
    assert re.search(r"^## (\S+)", changes, re.M).group(1) == version
    assert f"salt>={formula['minimum_version']}," in project
