"""A run that dies in the middle of its fifth step, as by a signal, for tests of what a resumed one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import method as methods
from training.loop import train


def dies_in_the_fifth_step(recipe: Path, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train `recipe` until it dies."""
    create = methods.create

    def fragile(name: str, options: dict) -> methods.Method:
        method = create(name, options)
        step, calls = method.step, iter(range(100))

        def stop(batch: dict, progress: float) -> dict:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return step(batch, progress)

        monkeypatch.setattr(method, "step", stop)
        return method

    with monkeypatch.context() as patch:
        patch.setattr(methods, "create", fragile)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, [override])
