"""How scripts/environment keeps the packages of the JavaScript client, and gets Debian's programs for the tests.

npm and apt-get themselves are replaced by shell functions.
"""

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


def prepared(
    clone: Path, npm: str = NPM, command: str = "prepare_javascript", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f". {REPOSITORY}/scripts/environment; {npm}{command}"],
        cwd=clone, capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": f"{clone}/bin:/usr/bin:/bin", **environment},
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


SYSTEM = "prepare_system"


def program(clone: Path, name: str, script: str) -> None:
    """What the shell finds under this name before the real one."""
    path = clone / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        ("false", "chromium nginx-light"),
        ('[ "$1" = /usr/bin/chromium ]', "nginx-light"),
        ('[ "$1" = /usr/sbin/nginx ]', "chromium"),
        ("true", None),
    ],
)
def test_programs_of_debian_are_installed_in_continuous_integration(clone: Path, there: str, installed: str | None):
    program(clone, "id", "echo 0")
    program(clone, "apt-get", f'echo "$*" >> {clone}/asked')
    functions = f"is_program() {{ {there}; }}; "
    assert prepared(clone, functions, SYSTEM).stdout == ""
    assert not (clone / "asked").exists(), "and nowhere else"
    done = prepared(clone, functions, SYSTEM, CI="true")
    assert (done.returncode, done.stdout) == (0, "")
    asked = (clone / "asked").read_text().splitlines() if installed else []
    assert asked == ([] if installed is None else ["-q update", f"-qy install --no-install-recommends {installed}"])


@pytest.mark.parametrize(("user", "said"), [("0", "the mirror is away\n"), ("1000", "")])
def test_programs_that_cannot_be_installed_are_named(clone: Path, user: str, said: str):
    program(clone, "id", f"echo {user}")
    program(clone, "apt-get", "echo the mirror is away; exit 100")
    done = prepared(clone, "is_program() { false; }; ", SYSTEM, CI="true")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{said}Not installed: chromium nginx-light" in done.stderr
    assert ("the mirror" in done.stderr) == bool(said), "apt-get is not even asked"


def test_a_missing_program_keeps_no_test_from_running(clone: Path):
    program(clone, "id", "echo 1000")
    functions = "prepare_python() { :; }; prepare_javascript() { :; }; is_program() { false; }; "
    testing = prepared(clone, functions, "prepare_environment requirements-dev.lock", CI="true")
    assert testing.returncode == 0
    assert "Not installed" in testing.stderr
    serving = prepared(clone, functions, "prepare_environment requirements.lock", CI="true")
    assert (serving.returncode, serving.stderr) == (0, "")
