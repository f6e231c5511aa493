"""System calls on models."""

from __future__ import annotations

from collections.abc import AsyncIterator

from kerneld.calls import Caller
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, convert
from syscalls.streams import closing
from syscalls.verbs import ModelVerbs


class Models:
    """Service `kerneld.v1.Models`."""

    def __init__(self, kernel: ModelVerbs) -> None:
        self._kernel = kernel

    async def RegisterModel(self, request: pb.RegisterModelRequest, caller: Caller) -> pb.Model:
        """Give a model directory a name."""
        return answers.model(await self._kernel.register_model(caller, convert.register_args(request)))

    async def LoadModel(self, request: pb.LoadModelRequest, caller: Caller) -> AsyncIterator[pb.LoadModelEvent]:
        """Bring a model onto the device and stream how far it is."""
        async with closing(self._kernel.load_model(caller, convert.register_args(request))) as events:
            async for event in events:
                yield answers.load_event(event)

    async def UnloadModel(self, request: pb.UnloadModelRequest, caller: Caller) -> pb.Model:
        """Take a model off the device."""
        return answers.model(await self._kernel.unload_model(caller, request.name, request.device))

    async def PinModel(self, request: pb.PinModelRequest, caller: Caller) -> pb.Model:
        """Keep a model on the device."""
        return answers.model(await self._kernel.pin_model(caller, request.name))

    async def UnpinModel(self, request: pb.PinModelRequest, caller: Caller) -> pb.Model:
        """Let a model leave for another one again."""
        return answers.model(await self._kernel.unpin_model(caller, request.name))

    async def RemoveModel(self, request: pb.RemoveModelRequest, caller: Caller) -> pb.RemoveModelResponse:
        """Forget a model's name."""
        await self._kernel.remove_model(caller, request.name)
        return pb.RemoveModelResponse()

    async def StatModel(self, request: pb.StatModelRequest, caller: Caller) -> pb.Model:
        """Show one model."""
        return answers.model(self._kernel.stat_model(caller, request.name))

    async def ListModels(self, request: pb.ListModelsRequest, caller: Caller) -> pb.ListModelsResponse:
        """Show one page of models."""
        page = self._kernel.list_models(caller, convert.plain_list(request))
        return pb.ListModelsResponse(models=map(answers.model, page.items), next_page_token=page.next_page_token)
