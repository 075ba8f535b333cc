"""How scripts/environment keeps the packages of the JavaScript client; npm itself is replaced by a shell function."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.programs import JAVASCRIPT
from tests.support.launching import REPOSITORY

FILES = ("package.json", "package-lock.json")
NPM = 'npm_ci() { echo "npm with cache ${npm_config_cache:-of the user}"; mkdir -p "$1/node_modules"; }; '
USER, OWN = "npm with cache of the user\n", "npm with cache {}/.venv/npm-cache\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a clone as the function looks at."""
    (tmp_path / "tests/e2e/javascript").mkdir(parents=True)
    for name in FILES:
        shutil.copy(JAVASCRIPT / name, tmp_path / "tests/e2e/javascript" / name)
    (tmp_path / ".venv").symlink_to(REPOSITORY / ".venv")
    return tmp_path


def prepared(clone: Path, npm: str = NPM, command: str = "prepare_javascript") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f". {REPOSITORY}/scripts/environment; {npm}{command}"],
        cwd=clone, capture_output=True, text=True, check=False, timeout=60, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_packages_are_installed_only_when_the_lock_has_changed(clone: Path):
    assert [prepared(clone).stdout for _ in range(2)] == [USER, ""]
    with (clone / "tests/e2e/javascript/package-lock.json").open("a") as lock:
        lock.write("\n")
    assert [prepared(clone).stdout for _ in range(2)] == [USER, ""]
    shutil.rmtree(clone / "tests/e2e/javascript/node_modules")
    assert prepared(clone).stdout == USER


def test_a_cache_that_cannot_be_used_is_passed_over(clone: Path):
    done = prepared(clone, NPM.replace("; }", '; [ -n "${npm_config_cache:-}" ]; }'))
    assert (done.returncode, done.stdout) == (0, USER + OWN.format(clone))
    assert prepared(clone).stdout == ""


def test_a_failure_is_explained_and_does_not_keep_other_tests_from_running(clone: Path):
    failing = NPM.replace("; }", "; false; }")
    done = prepared(clone, failing)
    assert done.returncode == 1
    assert "npm could not install the packages of tests/e2e/javascript" in done.stderr
    whole = prepared(clone, failing + "prepare_python() { :; }; ", "prepare_environment requirements-dev.lock")
    assert (whole.returncode, whole.stdout) == (0, USER + OWN.format(clone))
    assert prepared(clone, failing + "prepare_python() { :; }; ", "prepare_environment requirements.lock").stdout == ""


def test_the_lock_names_no_registry_and_every_hash():
    text = (JAVASCRIPT / "package-lock.json").read_text()
    assert "resolved" not in text
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert "node_modules/nostr-tools" in packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
