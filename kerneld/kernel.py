"""The kernel: all verbs in one object. What each does is in `kerneld.verbs`, one file per noun; what they act on is the Machine."""

from __future__ import annotations

from kerneld.machine import Machine
from kerneld.verbs.admin import AdminVerbs
from kerneld.verbs.contexts import ContextVerbs
from kerneld.verbs.devices import DeviceVerbs
from kerneld.verbs.edits import EditVerbs
from kerneld.verbs.groups import GroupVerbs
from kerneld.verbs.images import ImageVerbs
from kerneld.verbs.inference import InferenceVerbs
from kerneld.verbs.memory import MemoryVerbs
from kerneld.verbs.models import ModelVerbs
from kerneld.verbs.restoring import RestoreVerbs
from kerneld.verbs.suspension import SuspensionVerbs
from kerneld.verbs.usage import UsageVerbs


class Kernel:
    """The verbs of one daemon. Called on the event-loop thread only."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        contexts = ContextVerbs(machine)
        edits = EditVerbs(machine, contexts)
        inference = InferenceVerbs(machine)
        models = ModelVerbs(machine)
        images = ImageVerbs(machine, contexts)
        admin = AdminVerbs(machine, contexts)
        memory = MemoryVerbs(machine)

        self.alloc, self.fork, self.free = contexts.alloc, contexts.fork, contexts.free
        self.stat, self.list_contexts, self.read = contexts.stat, contexts.list_contexts, contexts.read
        self.truncate, self.suspend, self.resume = edits.truncate, edits.suspend, edits.resume
        self.suspend_to_disk = SuspensionVerbs(machine, contexts, edits).suspend_to_disk
        self.set, self.grant, self.revoke = edits.set, edits.grant, edits.revoke

        self.infer, self.attach = inference.infer, inference.attach
        self.cancel, self.score = inference.cancel, inference.score

        self.register_model, self.load_model = models.register_model, models.load_model
        self.unload_model, self.remove_model = models.unload_model, models.remove_model
        self.pin_model, self.unpin_model = models.pin_model, models.unpin_model
        self.stat_model, self.list_models = models.stat_model, models.list_models

        self.checkpoint, self.restore = images.checkpoint, RestoreVerbs(machine, contexts, images).restore
        self.list_images, self.verify_image, self.delete_image = images.list_images, images.verify_image, images.delete_image

        self.add_tenant, self.set_tenant = admin.add_tenant, admin.set_tenant
        self.list_tenants, self.remove_tenant = admin.list_tenants, admin.remove_tenant
        self.add_token, self.list_tokens, self.remove_token = admin.add_token, admin.list_tokens, admin.remove_token
        self.drain, self.top, self.events = admin.drain, admin.top, admin.events
        groups = GroupVerbs(machine)
        self.add_sharing_group, self.set_sharing_group = groups.add_sharing_group, groups.set_sharing_group
        self.remove_sharing_group, self.list_sharing_groups = groups.remove_sharing_group, groups.list_sharing_groups
        usage = UsageVerbs(machine)
        self.usage, self.shares = usage.usage, usage.shares
        self.read_memory, self.fsck = memory.read_memory, memory.fsck
        self.list_devices = DeviceVerbs(machine).list_devices
        self.explain_context, self.explain_model = memory.explain_context, memory.explain_model
        self.explain_request, self.list_requests = memory.explain_request, memory.list_requests

    def is_ready(self) -> bool:
        """Whether requests would be served now."""
        return not self.readiness_problem()

    def readiness_problem(self) -> str:
        """Why requests would not be served now; empty when they would."""
        if not self._machine.is_recovered:
            return "The daemon is recovering what was acknowledged."
        if self._machine.is_draining:
            return "The daemon is draining."
        if any(device.is_running for device in self._machine.devices):
            return ""
        supervisor = self._machine.devices.first.supervisor
        return f"The worker of {supervisor.command.device} is {supervisor.state.value}. {supervisor.problems.last}".strip()
