"""Requests on usage -> arguments, and records of usage -> answers."""

from __future__ import annotations

from kerneld.calls import ListPage
from kerneld.usage.amounts import AMOUNTS
from kerneld.usage.report import ShareRecord, Span, UsageArgs, UsageRecord
from kerneld_client.pb import syscalls_pb2 as pb

_SPANS = {
    pb.USAGE_SPAN_UNSPECIFIED: Span.TOTAL,
    pb.USAGE_SPAN_HOUR: Span.HOUR,
    pb.USAGE_SPAN_DAY: Span.DAY,
    pb.USAGE_SPAN_TOTAL: Span.TOTAL,
}


def usage_args(request: pb.UsageRequest) -> UsageArgs:
    """Whose usage, of what time."""
    return UsageArgs(request.tenant, request.since, request.until, _SPANS[request.span], request.page_size, request.page_token)


def usage(page: ListPage[UsageRecord]) -> pb.UsageResponse:
    """One page of usage."""
    return pb.UsageResponse(records=map(usage_record, page.items), next_page_token=page.next_page_token)


def usage_record(item: UsageRecord) -> pb.UsageRecord:
    """What one tenant used in one span."""
    amounts = {name: getattr(item, name) for name in AMOUNTS}
    return pb.UsageRecord(tenant=item.tenant, start=item.start, is_removed=item.is_removed, **amounts)


def shares(page: ListPage[ShareRecord]) -> pb.SharesResponse:
    """One page of the tree of shares."""
    return pb.SharesResponse(shares=map(share_record, page.items), next_page_token=page.next_page_token)


def share_record(item: ShareRecord) -> pb.ShareRecord:
    """A node of the tree of shares."""
    return pb.ShareRecord(
        tenant=item.tenant,
        weight=item.weight,
        share=item.share,
        machine_share=item.machine_share,
        used_share=item.used_share,
        decayed_us=item.decayed_us,
        factor_milli=item.factor_milli,
        effective_share=item.effective_share,
        effective_machine_share=item.effective_machine_share,
        service_us=item.service_us,
        num_waiting=item.num_waiting,
        num_running=item.num_running,
    )
