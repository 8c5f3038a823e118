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


ASK = """
source "$HOME/.bashrc"
complete -p clipworks
COMP_WORDS=(clipworks "$@") COMP_CWORD=$#
"$(complete -p clipworks | sed 's/.*-F \\([^ ]*\\).*/\\1/')" clipworks "${@: -1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def own_environment(**more: str) -> dict[str, str]:
    """With the program first on the path, as a shell finds it."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ}
    return kept | {"PATH": os.pathsep.join([str(Path(PROGRAM).parent), os.environ["PATH"]])} | more


def test_bash_completes_after_the_installation(tmp_path: Path) -> None:
    environment = own_environment(HOME=str(tmp_path))

    def bash(*words: str) -> list[str]:
        done = subprocess.run(["bash", *words], env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.splitlines()

    bash("--norc", "-c", "clipworks --install-completion; exit")  # the shell is found among its parents
    for words, offered in (("cla", "classify"), ("serve --max-it", "--max-items"), ("doctor --qu", "--quick")):
        known, *found = bash("--norc", "-c", ASK, "bash", *words.split())
        assert known.endswith(" clipworks")
        assert found == [offered]


@pytest.mark.parametrize(
    ("shell", "script", "asked"),
    [
        ("zsh", "compdef _clipworks_completion clipworks", {}),
        ("fish", "complete --command clipworks", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_zsh_and_fish_have_a_script_and_are_answered(shell: str, script: str, asked: dict[str, str]) -> None:
    def answer(**variables: str) -> str:
        environment = own_environment(**variables)
        return subprocess.run(
            [PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    assert script in answer(_CLIPWORKS_COMPLETE=f"source_{shell}")
    said = answer(_CLIPWORKS_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS="clipworks serve --max-it", **asked)
    assert "--max-items" in said
    assert "--port" not in said
