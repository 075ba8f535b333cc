"""The shell scripts: what they say where they cannot go on. That they work is seen by whoever runs these tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.launching import REPOSITORY

SCRIPTS = (
    "scripts/serve", "scripts/test", "scripts/check", "scripts/race", "scripts/simulate", "scripts/torture",
    "scripts/bench", ".ci/run",
)  # fmt: skip


def sourced(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f". scripts/environment; {command}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30,
        env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("script", [*SCRIPTS, "scripts/environment"])
def test_it_is_plain_shell(script):
    assert subprocess.run(["sh", "-n", script], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_can_be_executed(script):
    assert (REPOSITORY / script).stat().st_mode & 0o111 == 0o111


def test_the_chosen_interpreter_is_taken():
    assert sourced("find_python", PYTHON=sys.executable).stdout == f"{sys.executable}\n"


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python3"])
def test_an_interpreter_that_does_not_run_is_named(python):
    done = sourced("find_python", PYTHON=python)
    assert done.returncode == 1
    assert f"PYTHON={python} does not run" in done.stderr


def test_a_shim_without_a_version_behind_it_is_passed_over(tmp_path):
    for name, body in (("python3.13", "exit 127"), ("python3.12", f'exec {sys.executable} "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    assert sourced("find_python", PATH=f"{tmp_path}:/usr/bin:/bin").stdout == "python3.12\n"


def test_no_interpreter_at_all_is_explained(tmp_path):
    done = sourced("find_python", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "No Python 3.11, 3.12 or 3.13 was found" in done.stderr
