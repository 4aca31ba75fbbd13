"""Run, Pause, Resume and Stop; how far the rounds are; and what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import anywidget
import traitlets

from ..core import ParameterError

_ESM = resources.files(__package__ or "fedjax_secure.widgets").joinpath("esm")
ACTIONS = ("run", "pause", "resume", "stop")


class RunControls(anywidget.AnyWidget):
    """Buttons, a progress bar, the time, a line of status, and an error's text.

    Args:
        on_press: called with ``"run"``, ``"pause"``, ``"resume"`` or ``"stop"`` when an enabled
            button is pressed.

    Example:
        >>> controls = RunControls(print)
        >>> controls.enabled = ["run"]
        >>> controls.press("run")
        run
        >>> controls.press("stop")  # not enabled: nothing happens
    """

    _esm = _ESM.joinpath("controls.js").read_text("utf-8")
    _css = _ESM.joinpath("style.css").read_text("utf-8")

    state = traitlets.Unicode("ready").tag(sync=True)
    enabled = traitlets.List(traitlets.Unicode(), help="buttons that can be pressed").tag(sync=True)
    round = traitlets.Int(0, help="the last finished round").tag(sync=True)
    rounds = traitlets.Int(0).tag(sync=True)
    elapsed_seconds = traitlets.Float(0.0, help="time in rounds, pauses excluded").tag(sync=True)
    ticking = traitlets.Bool(False, help="the time goes on by itself").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)

    def __init__(self, on_press: Callable[[str], None]):
        super().__init__()
        self._on_press = on_press
        self.on_msg(self._receive)

    def press(self, action: str) -> None:
        """Press a button, as a person would; a disabled one does nothing.

        Raises:
            ParameterError: there is no such button.
        """
        if action not in ACTIONS:
            raise ParameterError("RunControls.press", need="one of " + ", ".join(ACTIONS),
                                 found=repr(action), fix="Check the spelling.")
        if action in self.enabled:
            self._on_press(action)

    def _receive(self, widget: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("press") in ACTIONS:
            self.press(content["press"])
