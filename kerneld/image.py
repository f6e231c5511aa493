"""Image: what a checkpoint says of a context, as bytes that tell when they were tampered with.

    0 magic 8 B     8 version u32     12 body length u32     16 crc32c of the body u32     20 HMAC-SHA-256 of all else     52 body: msgpack

The checksum tells damage without a key (for garbage collection, which has none); the HMAC, with a key of the tenant, tells forgery. An
image is hostile input: every length is checked against what is there before anything is read or allocated by it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct

import msgspec
from crc32c import crc32c

from kerneld.errors import DataLoss
from kerneld.security.keys import Purpose, derive

MAX_MANIFEST_BYTES = 64 << 20  # 4 million tokens with their pages have 50 MB
MAX_PAGE_BYTES = 256 << 20
MAX_PAGES = 1 << 20

_MAGIC = b"kd.imag\n"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
_MAC_BYTES = 32
_BODY_START = _HEAD.size + _MAC_BYTES
_PAGE_NAME = re.compile(r"[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")


class ImagePage(msgspec.Struct, frozen=True, array_like=True):
    """One page of an image: KV group and index in the context, and the file that holds it."""

    group: int
    page_idx: int
    key: bytes  # of its last token's link in the context's hash chain
    num_tokens: int
    name: str  # HMAC of the content with a key of the tenant, 64 hex
    size_bytes: int
    crc32c: int


class Manifest(msgspec.Struct, frozen=True):
    """Everything of an image but the bytes of its pages. Tokens are packed as in the journal."""

    image_id: str
    context_id: str
    tenant: str
    owner: str
    model: str
    fingerprint: str  # of the pages: weights, adapter, dtype, layout, kernels; another one at restore means to recompute
    generation: int  # counts the images of the context
    tokens: bytes
    seed: int
    created_at: float
    name: str = ""
    labels: dict[str, str] = {}
    max_tokens: int = 0
    pages: tuple[ImagePage, ...] = ()
    adapter: str = ""
    sharing_group: str = ""  # whose names the pages have

    @property
    def num_tokens(self) -> int:
        """How many tokens the image has."""
        return len(self.tokens) // 4


def is_image_id(text: str) -> bool:
    """Whether a text has the form of an image id; nothing else is ever made a file name."""
    return _IMAGE_ID.fullmatch(text) is not None


def page_name(content: bytes | memoryview, tenant_secret: bytes) -> str:
    """Return the name of a page with this content in this tenant."""
    return hmac.new(derive(tenant_secret, Purpose.PAGE_NAME), content, hashlib.sha256).hexdigest()


def pack(manifest: Manifest, tenant_secret: bytes) -> bytes:
    """Return a manifest's bytes. Raises: ValueError, if it is larger than any reader accepts."""
    body = msgspec.msgpack.encode(manifest)
    if len(body) > MAX_MANIFEST_BYTES or len(manifest.pages) > MAX_PAGES:
        raise ValueError(f"a manifest of {len(body)} bytes and {len(manifest.pages)} pages is too large")
    head = _HEAD.pack(_MAGIC, _VERSION, len(body), crc32c(body))
    return head + _mac(head, body, tenant_secret) + body


def unpack(raw: bytes, image_id: str, tenant_secret: bytes) -> Manifest:
    """Return the manifest of an image. Raises: DataLoss, if it is damaged, forged, another image's or another tenant's."""
    manifest = unpack_unauthenticated(raw, image_id)
    head, mac, body = raw[: _HEAD.size], raw[_HEAD.size : _BODY_START], raw[_BODY_START:]
    if not hmac.compare_digest(mac, _mac(head, body, tenant_secret)):
        raise damaged(image_id, "its manifest was not written for this tenant, or was changed")
    return manifest


def unpack_unauthenticated(raw: bytes, image_id: str) -> Manifest:
    """Return what a file says, undamaged, but perhaps forged: for finding out which pages it needs. Raises: DataLoss."""
    if len(raw) < _BODY_START:
        raise damaged(image_id, "its manifest is cut short")
    magic, version, length, checksum = _HEAD.unpack_from(raw)
    body = raw[_BODY_START:]
    if magic != _MAGIC or length != len(body) or crc32c(body) != checksum:
        raise damaged(image_id, "its manifest does not hold its checksum")
    if version != _VERSION:
        raise damaged(image_id, f"its manifest has format {version}, this kerneld reads {_VERSION}")
    try:
        manifest = msgspec.msgpack.decode(body, type=Manifest)
    except msgspec.DecodeError as error:
        raise damaged(image_id, f"its manifest makes no sense ({error})") from error
    _check(manifest, image_id)
    return manifest


def damaged(image_id: str, problem: str, remedy: str = "Restore an older one.", **facts: str) -> DataLoss:
    """Return the error that names what is wrong with an image, and what to do."""
    return DataLoss(f"The image {image_id} is damaged: {problem}. {remedy}", facts={"image_id": image_id} | facts)


def _check(manifest: Manifest, image_id: str) -> None:
    """Refuse what no kerneld writes. Raises: DataLoss."""
    if manifest.image_id != image_id:
        raise damaged(image_id, f"its manifest is that of image {manifest.image_id!r}")
    if len(manifest.tokens) % 4 or len(manifest.pages) > MAX_PAGES:
        raise damaged(image_id, "its manifest has impossible sizes")
    places = set()
    for page in manifest.pages:
        is_possible = 0 <= page.size_bytes <= MAX_PAGE_BYTES and 0 < page.num_tokens <= manifest.num_tokens
        if not is_possible or page.page_idx < 0 or page.group < 0 or not _PAGE_NAME.fullmatch(page.name):
            raise damaged(image_id, f"page {page.page_idx} of group {page.group} has impossible facts")
        places.add((page.group, page.page_idx))
    if len(places) != len(manifest.pages):
        raise damaged(image_id, "its manifest names a page twice")


def _mac(head: bytes, body: bytes, tenant_secret: bytes) -> bytes:
    return hmac.digest(derive(tenant_secret, Purpose.MANIFEST), head + body, hashlib.sha256)
