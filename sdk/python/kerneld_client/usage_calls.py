"""Calls on usage and shares: what is sent, and how the answers are read."""

from __future__ import annotations

from kerneld_client.call import Call, Page, enum_number, fill, page_of, unary
from kerneld_client.pb import syscalls_pb2 as pb
from kerneld_client.usage_values import ShareRecord, UsageRecord

_US_PER_S = 1e6
_MS_PER_S = 1e3
_MOST_SHARES = 1000


def usage(page_token: str, tenant: str, since: float, until: float, by: str) -> Call[Page[UsageRecord]]:
    """One page of what tenants used."""
    span = enum_number(dict(pb.UsageSpan.items()), "USAGE_SPAN_", "by", by)
    request = fill(pb.UsageRequest(), {"page_token": page_token, "tenant": tenant, "since": since, "until": until, "span": span})
    return unary("Admin/Usage", request, pb.UsageResponse, page_of("records", usage_record))


def shares(page_token: str) -> Call[Page[ShareRecord]]:
    """One page of the tree of shares: large, as the daemon looks at all siblings for each."""
    request = fill(pb.SharesRequest(), {"page_token": page_token, "page_size": _MOST_SHARES})
    return unary("Admin/Shares", request, pb.SharesResponse, page_of("shares", share_record))


def usage_record(message: pb.UsageRecord) -> UsageRecord:
    """Read what one tenant used in one span."""
    return UsageRecord(
        tenant=message.tenant,
        start=message.start,
        is_removed=message.is_removed,
        requests=message.requests,
        input_tokens=message.input_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        device_s=message.device_us / _US_PER_S,
        service_us=message.service_us,
        device_page_s=message.device_page_ms / _MS_PER_S,
        host_page_s=message.host_page_ms / _MS_PER_S,
        disk_page_s=message.disk_page_ms / _MS_PER_S,
        loads=message.loads,
        load_s=message.load_us / _US_PER_S,
    )


def share_record(message: pb.ShareRecord) -> ShareRecord:
    """Read a node of the tree of shares."""
    return ShareRecord(**{name: getattr(message, name) for name in ShareRecord.__dataclass_fields__})
