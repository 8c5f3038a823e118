"""The table of checks, and how each is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clipworks.cli.doctor import data_folder, given, installed, machine, models, network
from clipworks.cli.doctor.diagnosis import Diagnosis, failure
from clipworks.cli.doctor.subject import Subject

Check = Callable[[Subject], Diagnosis | None]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", installed.check_python),
    ("packages", installed.check_packages),
    ("flavours", installed.check_flavours),
    ("picture formats", installed.check_formats),
    ("torch", installed.check_torch),
    ("settings", given.check_settings),
    ("variables", given.check_variables),
    ("access", given.check_access),
    ("device", machine.check_device),
    ("threads", machine.check_threads),
    ("memory", machine.check_memory),
    ("open files", machine.check_files),
    ("data folder", data_folder.check_folder),
    ("data space", data_folder.check_space),
    ("data file system", data_folder.check_file_system),
    ("data holder", data_folder.check_holder),
    ("store", models.check_store),
    ("model", models.check_model),
    ("port", network.check_port),
    ("server", network.check_server),
)


def examine(subject: Subject) -> Iterator[tuple[str, Diagnosis]]:
    """(check, finding) of every check that applies."""
    for name, check in CHECKS:
        if finding := _carried_out(check, subject):
            yield name, finding


def _carried_out(check: Check, subject: Subject) -> Diagnosis | None:
    """One check that cannot be carried out is a finding too, and the others are."""
    try:
        return check(subject)
    except ImportError as error:
        return failure(f"cannot be looked at: {error}", "pip install --force-reinstall 'clipworks[serve]'")
    except Exception as error:
        return failure(
            f"cannot be looked at: {type(error).__name__}: {error}",
            "look at what it names; `clipworks doctor --json` is what to report if it seems wrong",
        )
