"""The verb restore: a context from an image.

Pages are put into the host tier, and the next request faults them in like any others. They are an extra: what an image lacks, what does not
hold, or does not fit the model's fingerprint, is computed from the tokens, and the answer says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from kerneld.calls import Caller, Restored
from kerneld.catalog import Registered
from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.errors import DataLoss, OutOfRange
from kerneld.events import ImageRestored
from kerneld.image import ImagePage, Manifest
from kerneld.machine import Machine
from kerneld.state.records import unpack_tokens
from kerneld.verbs.contexts import ContextVerbs
from kerneld.verbs.images import ImageVerbs
from memory.errors import PagingError


class RestoreVerbs:
    """Makes contexts of images."""

    def __init__(self, machine: Machine, contexts: ContextVerbs, images: ImageVerbs) -> None:
        self._machine = machine
        self._contexts = contexts
        self._images = images

    async def restore(self, caller: Caller, image_id: str, labels: Mapping[str, str]) -> Restored:
        """Make a context from an image. Pages come back where their fingerprint fits, else they are recomputed, and the answer says why.

        Raises: NotFound, DataLoss, WrongState, QuotaExceeded, DiskFull.
        """
        machine = self._machine
        known = machine.effects.find(caller, "restore")
        if known is not None:
            return Restored(self._contexts.stat(caller, known.hex()), 0, 0, "This call was answered before.")
        with machine.effects.under_way(caller):
            info = await self._images.get(caller, image_id)
            machine.admission.check_context(caller.principal.tenant)
            machine.bounds.check_labels(labels)
            secret = machine.tenants.get(info.tenant).secret
            manifest = await asyncio.to_thread(machine.images.read, image_id, secret)
            model, adapter = machine.models.pair(manifest.model, manifest.adapter)
            for name in filter(None, (model.name, adapter)):
                await machine.placer.inspect(machine.models.get(name))
            context = self._context_of(caller, manifest, model, labels)
            reason = self._place(context, manifest)
            pages = [] if reason else sorted(manifest.pages, key=lambda page: (page.page_idx, page.group))
            contents, damage = await asyncio.to_thread(self._read_pages, manifest, pages, secret)
            await self._contexts.begin(caller, "restore", context)
            if pages:
                reason = self._put_pages(context, pages, contents) or damage
                self._share_pages(context)
        page_tokens = machine.config.memory.page_tokens
        num_restored = -(-context.kv_valid // page_tokens)
        num_needed = -(-context.num_tokens // page_tokens)
        machine.events.publish(ImageRestored(image_id, context.id, context.tenant, num_restored, num_needed - num_restored))
        return Restored(self._contexts.info(context), num_restored, num_needed - num_restored, reason)

    def _context_of(self, caller: Caller, manifest: Manifest, model: Registered, labels: Mapping[str, str]) -> Context:
        limit = model.context_limit()
        if limit and manifest.num_tokens > limit:
            raise OutOfRange(f"The image has {manifest.num_tokens} tokens, the model {model.name!r} holds {limit}.")
        context = Context(
            id=secrets.token_hex(16),
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            model=model.name,
            adapter=manifest.adapter,
            sharing_group=self._machine.tenants.groups.still(manifest.sharing_group, caller.principal.tenant),
            fingerprint=self._machine.models.weights_of((model.name, manifest.adapter) if manifest.adapter else (model.name,)),
            seed=manifest.seed,
            created_at=self._machine.clock(),
            max_tokens=min(manifest.max_tokens or limit, limit),
            labels={**manifest.labels, **labels},
        )
        context.tokens = unpack_tokens(manifest.tokens)
        return context

    def _place(self, context: Context, manifest: Manifest) -> str:
        """Let a context be on a device where the image's pages can be used. Says why there is none; empty if there is."""
        reasons = {device: self._misfit(context, manifest, device) for device in self._machine.devices}
        able = [device for device, reason in reasons.items() if not reason]
        if able:
            resident = [device for device in able if device.models.get(context.model).is_resident]
            context.device = (resident or able)[0].label
            return ""
        return next(iter(reasons.values()))

    def _misfit(self, context: Context, manifest: Manifest, device: DeviceParts) -> str:
        """Why the image's pages cannot be used on a device; empty if they can."""
        if not manifest.pages:
            return "The image has no pages."
        if not all(device.models.get(name).model_id for name in context.models):
            return "The model is not loaded yet."
        if manifest.fingerprint != device.seating.fingerprint(context).hex():
            return "The model, its adapter, or how they are computed, has changed since the image was taken."
        if device.host is None:
            return "There is no host tier to restore pages to."
        if context.tenant != manifest.tenant:
            return "Pages are not handed from one tenant to another."
        if context.sharing_group != manifest.sharing_group:
            return f"The image was taken in the sharing group {manifest.sharing_group!r}, of which its tenant is not a member any more."
        return ""

    def _put_pages(self, context: Context, pages: list[ImagePage], contents: list[bytes]) -> str:
        """Bring the image's pages into the host tier, in order, until one does not fit. Says why it stopped early."""
        device = self._machine.devices.of(context)
        pager, host, table = device.pager, device.host, device.seating.table_of(context)
        assert context.chain is not None, "made with the table"
        assert host is not None, "checked before"
        context.chain.extend(context.tokens)
        valid: dict[int, int] = {}
        for page, content in zip(pages, contents, strict=False):  # those behind a damaged one are not read
            if page.num_tokens == pager.page_tokens and page.key != context.chain.keys[page.page_idx]:
                return "The image's pages are not those of its tokens."
            try:
                frame = pager.reserve_host(table, page.group, page.page_idx, page.key, page.num_tokens)
            except PagingError as shortage:
                return f"The host tier has no more room: {shortage}"
            host.write_page(frame, content, page.key, page.num_tokens, table.space_ids[page.group])
            valid[page.group] = page.page_idx * pager.page_tokens + page.num_tokens
            context.kv_valid = min(valid.values()) if len(valid) == len(table.space_ids) else 0
        return ""

    def _share_pages(self, context: Context) -> None:
        """Let others of the sharing domain take what came back."""
        assert context.table is not None, "made with the pages"
        assert context.chain is not None, "made with the table"
        self._machine.devices.of(context).pager.fill(context.table, context.kv_valid, context.chain.keys)

    def _read_pages(self, manifest: Manifest, pages: list[ImagePage], secret: bytes) -> tuple[list[bytes], str]:
        """The contents of pages as far as they hold, and what is wrong with the first that does not."""
        contents: list[bytes] = []
        try:
            contents.extend(self._machine.images.read_page(manifest, page, secret) for page in pages)
        except DataLoss as error:
            return contents, error.message
        return contents, ""
