"""System calls on images."""

from __future__ import annotations

from kerneld.calls import Caller
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, convert
from syscalls.verbs import ImageVerbs


class Checkpoints:
    """Service `kerneld.v1.Checkpoints`."""

    def __init__(self, kernel: ImageVerbs) -> None:
        self._kernel = kernel

    async def Checkpoint(self, request: pb.CheckpointRequest, caller: Caller) -> pb.Image:
        """Write an image of a context."""
        return answers.image(await self._kernel.checkpoint(caller, convert.checkpoint_args(request)))

    async def Restore(self, request: pb.RestoreRequest, caller: Caller) -> pb.RestoreResponse:
        """Make a context from an image."""
        return answers.restored(await self._kernel.restore(caller, request.image_id, dict(request.labels)))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, caller: Caller) -> pb.ListCheckpointsResponse:
        """Show one page of images."""
        page = await self._kernel.list_images(caller, convert.image_list(request))
        return pb.ListCheckpointsResponse(images=map(answers.image, page.items), next_page_token=page.next_page_token)

    async def VerifyCheckpoint(self, request: pb.VerifyCheckpointRequest, caller: Caller) -> pb.VerifyCheckpointResponse:
        """Read an image again and say what does not hold."""
        return answers.verified(await self._kernel.verify_image(caller, request.image_id))

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, caller: Caller) -> pb.DeleteCheckpointResponse:
        """Delete an image."""
        await self._kernel.delete_image(caller, request.image_id)
        return pb.DeleteCheckpointResponse()
