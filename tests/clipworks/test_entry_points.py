"""The program under each of its names: its version, its completion, and what a plain import of it costs."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).with_name("clipworks"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("program", [(PROGRAM,), (sys.executable, "-m", "clipworks")], ids=["script", "module"])
def test_both_names_are_one_program(program: tuple[str, ...]) -> None:
    shown = run(*program, "--version")
    assert (shown.returncode, shown.stdout) == (0, f"clipworks {version('clipworks')}\n")
    helped = run(*program, "--help")
    assert helped.returncode == 0
    assert "Usage: clipworks [OPTIONS] COMMAND" in helped.stdout
    wrong = run(*program, "no-such-command")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_the_shell_can_complete_commands_and_settings() -> None:
    shown = run("bash", "-c", f"{PROGRAM} --show-completion bash; exit")  # the shell is found among its parents
    assert "_clipworks_completion" in shown.stdout
    for words, offered in (("serve --max-it", "--max-items"), ("doctor --qu", "--quick")):
        asked = {"_CLIPWORKS_COMPLETE": "complete_bash", "COMP_WORDS": f"clipworks {words}", "COMP_CWORD": "2"}
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        done = subprocess.run([PROGRAM], env=environment | asked, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [offered]
