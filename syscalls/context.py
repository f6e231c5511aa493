"""System calls on contexts."""

from __future__ import annotations

from kerneld.calls import Caller
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, convert
from syscalls.verbs import ContextVerbs


class Contexts:
    """Service `kerneld.v1.Contexts`."""

    def __init__(self, kernel: ContextVerbs) -> None:
        self._kernel = kernel

    async def AllocContext(self, request: pb.AllocContextRequest, caller: Caller) -> pb.Context:
        """Make a new, empty context."""
        return answers.context(await self._kernel.alloc(caller, convert.alloc_args(request)))

    async def ForkContext(self, request: pb.ForkContextRequest, caller: Caller) -> pb.Context:
        """Make a context that shares another's past."""
        return answers.context(await self._kernel.fork(caller, convert.fork_args(request)))

    async def FreeContext(self, request: pb.FreeContextRequest, caller: Caller) -> pb.FreeContextResponse:
        """Give a context back."""
        await self._kernel.free(caller, request.context_id)
        return pb.FreeContextResponse()

    async def StatContext(self, request: pb.StatContextRequest, caller: Caller) -> pb.Context:
        """Show one context."""
        return answers.context(self._kernel.stat(caller, request.context_id))

    async def ListContexts(self, request: pb.ListContextsRequest, caller: Caller) -> pb.ListContextsResponse:
        """Show one page of contexts."""
        page = self._kernel.list_contexts(caller, convert.context_list(request))
        return pb.ListContextsResponse(contexts=map(answers.context, page.items), next_page_token=page.next_page_token)

    async def ReadContext(self, request: pb.ReadContextRequest, caller: Caller) -> pb.ReadContextResponse:
        """Give tokens and text from an offset on."""
        limit = request.limit or convert.DEFAULT_READ_TOKENS
        return answers.context_text(await self._kernel.read(caller, request.context_id, request.offset, limit))

    async def TruncateContext(self, request: pb.TruncateContextRequest, caller: Caller) -> pb.Context:
        """Roll a context back."""
        return answers.context(await self._kernel.truncate(caller, request.context_id, request.num_tokens))

    async def SuspendContext(self, request: pb.SuspendContextRequest, caller: Caller) -> pb.Context:
        """Make a context's pages the first to be reclaimed, or move them out wholly."""
        suspend = self._kernel.suspend_to_disk if request.to_disk else self._kernel.suspend
        return answers.context(await suspend(caller, request.context_id))

    async def ResumeContext(self, request: pb.ResumeContextRequest, caller: Caller) -> pb.Context:
        """Undo a suspend."""
        return answers.context(await self._kernel.resume(caller, request.context_id))

    async def SetContext(self, request: pb.SetContextRequest, caller: Caller) -> pb.Context:
        """Change nice, priority, labels or limit."""
        return answers.context(await self._kernel.set(caller, convert.set_args(request)))

    async def GrantContext(self, request: pb.GrantContextRequest, caller: Caller) -> pb.Context:
        """Give somebody else access."""
        return answers.context(await self._kernel.grant(caller, request.context_id, convert.grant_of(request.grant)))

    async def RevokeContext(self, request: pb.RevokeContextRequest, caller: Caller) -> pb.Context:
        """Take access back."""
        return answers.context(await self._kernel.revoke(caller, request.context_id, request.grantee))
