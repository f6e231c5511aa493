"""The verbs on images: checkpoint, list, verify, delete. What comes back from one is in `kerneld.verbs.restoring`.

A checkpoint copies the context's pages to the host tier with the next plan, and writes them from there in a thread, so no step waits for a
disk.

An image belongs to whoever took it, and counts for his tenant; one that an admin takes, to the owner of the context.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from kerneld.calls import Access, Caller, CheckpointArgs, ImageInfo, ListArgs, ListPage, Verified
from kerneld.checkpoint import PageContent, Written
from kerneld.context import Context
from kerneld.contexts import page_of
from kerneld.errors import NotFound, QuotaExceeded
from kerneld.events import ImageDeleted, ImageWritten
from kerneld.image import Manifest
from kerneld.machine import Machine
from kerneld.seating import cut_chain, name_pages
from kerneld.security.acl import is_owner, may_see_everything
from kerneld.state.records import pack_tokens
from kerneld.verbs.contexts import ContextVerbs
from memory.table import HostPage


class ImageVerbs:
    """Verbs on images, but restore."""

    def __init__(self, machine: Machine, contexts: ContextVerbs) -> None:
        self._machine = machine
        self._contexts = contexts

    # ---------------------------------------------------------------------------------------------------------------------- checkpoint

    async def checkpoint(self, caller: Caller, args: CheckpointArgs) -> ImageInfo:
        """Write an image of a context as it is journaled now. When this returns, the image survives power loss.

        Raises: NotFound, QuotaExceeded, DiskFull.
        """
        machine = self._machine
        known = machine.effects.find(caller, "checkpoint")
        if known is not None:
            return await self.get(caller, known.hex())
        context = machine.contexts.get(caller, args.context_id, Access.READ)
        with machine.effects.under_way(caller):
            return await self._write(caller, context, args)

    async def _write(self, caller: Caller, context: Context, args: CheckpointArgs) -> ImageInfo:
        machine, started_at = self._machine, time.monotonic()
        machine.disk.check()
        owner = caller.principal.name, caller.principal.tenant
        if caller.principal.is_admin:
            owner = context.owner, context.tenant
        secret = machine.tenants.get(owner[1]).secret
        images = await machine.store.load_images()
        self._check_quota(owner[1], images)
        manifest = self._manifest(context, args, owner, generation=1 + sum(image.context_id == context.id for image in images))
        has_pages = not args.tokens_only and manifest.tenant == context.tenant  # pages never cross a tenant unasked
        if has_pages:
            async with self._saved_pages(context) as pages:
                with ExitStack() as views:
                    contents = [self._content(context, page, views) for page in pages]
                    written = await _to_its_end(lambda: machine.images.write(manifest, contents, secret))
        else:
            written = await asyncio.to_thread(machine.images.write, manifest, [], secret)
        info = ImageInfo(
            id=manifest.image_id,
            context_id=context.id,
            model=context.model,
            owner=manifest.owner,
            tenant=manifest.tenant,
            num_tokens=manifest.num_tokens,
            num_pages=len(written.manifest.pages),
            size_bytes=written.size_bytes,
            created_at=manifest.created_at,
            name=args.name,
        )
        effects = machine.effects.record(caller, "checkpoint", bytes.fromhex(info.id))
        await machine.store.add_image(info, effects)
        machine.effects.keep(effects)
        seconds = time.monotonic() - started_at
        machine.events.publish(ImageWritten(info.id, context.id, info.tenant, info.num_pages, info.size_bytes, seconds))
        return info

    def _manifest(self, context: Context, args: CheckpointArgs, owner: tuple[str, str], generation: int) -> Manifest:
        return Manifest(
            image_id=secrets.token_hex(16),
            context_id=context.id,
            tenant=owner[1],
            owner=owner[0],
            model=context.model,
            adapter=context.adapter,
            sharing_group=context.sharing_group,
            fingerprint=self._machine.devices.of(context).seating.fingerprint(context).hex(),
            generation=generation,
            tokens=pack_tokens(context.tokens),
            seed=context.seed,
            created_at=self._machine.clock(),
            name=args.name,
            labels=dict(context.labels),
            max_tokens=context.max_tokens,
        )

    def _check_quota(self, tenant: str, images: list[ImageInfo]) -> None:
        limit = self._machine.tenants.get(tenant).limits.image_bytes
        used = sum(image.size_bytes for image in images if image.tenant == tenant)
        if limit and used >= limit:
            raise QuotaExceeded(
                f"The tenant {tenant!r} has {used} bytes of images, its limit is {limit}; delete some first.",
                facts={"limit": "image_bytes", "value": str(limit), "holder": tenant},
            )
        total, budget = sum(image.size_bytes for image in images), self._machine.config.memory.disk_bytes
        if budget and total >= budget:
            raise QuotaExceeded(f"Images have {total} bytes of the {budget} that memory.disk_bytes allows; delete some first.")

    @asynccontextmanager
    async def _saved_pages(self, context: Context) -> AsyncIterator[list[HostPage]]:
        """Copy the context's valid pages to the host tier, as many as there is room for, and keep them as they are meanwhile."""
        device, table = self._machine.devices.of(context), context.table
        if table is None or context.chain is None or device.host is None or not context.kv_valid:
            yield []
            return
        page_tokens = device.pager.page_tokens
        # A running request writes to its last page: only its full pages are saved.
        num_tokens = context.kv_valid // page_tokens * page_tokens if context.is_active else context.kv_valid
        name_pages(context, num_tokens)
        chain = context.chain.fork()
        cut_chain(chain, num_tokens, context)
        device.pager.save(table, num_tokens, chain.keys, chain.partial_key())
        device.pager.hold_host(table)
        try:
            await device.dispatcher.flush()
            names = [*chain.keys, chain.partial_key()]
            # A page by another name was written by somebody else meanwhile: after a truncate, or for a fork that shares it.
            yield [page for page in device.pager.host_pages(table) if page.page_idx < len(names) and page.key == names[page.page_idx]]
        finally:
            device.pager.release_host(table)

    def _content(self, context: Context, page: HostPage, views: ExitStack) -> PageContent:
        """A page where it lies in the host tier; the view of it ends with `views`."""
        host = self._machine.devices.of(context).host
        assert host is not None, "pages were saved there"
        return PageContent(page.group, page.page_idx, page.key, page.num_tokens, views.enter_context(host.payload(page.frame)))

    # ------------------------------------------------------------------------------------------------------------- list, verify, delete

    async def list_images(self, caller: Caller, args: ListArgs) -> ListPage[ImageInfo]:
        """The caller's images, or everybody's. Raises: InvalidArgument."""
        everybody = args.everybody and may_see_everything(caller.principal)
        images = {
            image.id: image
            for image in await self._machine.store.load_images()
            if (everybody or is_owner(caller.principal, image.owner, image.tenant))
            and (not args.context_id or image.context_id == args.context_id)
        }
        return page_of(sorted(images), args, lambda image_id: images[image_id], lambda _image: True)

    async def verify_image(self, caller: Caller, image_id: str) -> Verified:
        """Read everything of an image again and say what is wrong with it. Raises: NotFound."""
        info = await self.get(caller, image_id)
        secret = self._machine.tenants.get(info.tenant).secret
        return await asyncio.to_thread(self._machine.images.verify, image_id, secret)

    async def delete_image(self, caller: Caller, image_id: str) -> None:
        """Remove an image and the pages that no other one needs. Raises: NotFound."""
        machine = self._machine
        if machine.effects.find(caller, "delete_image") is not None:
            return
        info = await self.get(caller, image_id)
        effects = machine.effects.record(caller, "delete_image")
        await machine.store.remove_image(image_id, effects)
        machine.effects.keep(effects)
        await asyncio.to_thread(machine.images.delete, image_id)
        machine.events.publish(ImageDeleted(info.id, info.tenant))

    async def get(self, caller: Caller, image_id: str) -> ImageInfo:
        """An image of the caller's, or anybody's for an admin. Raises: NotFound."""
        for image in await self._machine.store.load_images():
            if image.id == image_id and (caller.principal.is_admin or is_owner(caller.principal, image.owner, image.tenant)):
                return image
        raise NotFound("image", image_id)


async def _to_its_end(work: Callable[[], Written]) -> Written:
    """Run blocking work in a thread and wait until it has ended, even if the caller leaves: it reads pages that are held for it."""
    thread = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise
