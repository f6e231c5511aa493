"""Kernel values about requests -> answers. The others are in `syscalls.answers`."""

from __future__ import annotations

from kerneld.calls import ListPage
from kerneld.holdings import Contender, Outlook, StartEstimate, TenantActivity
from kerneld_client.pb import syscalls_pb2 as pb


def requests(page: ListPage[Outlook]) -> pb.ListRequestsResponse:
    """One page of requests."""
    return pb.ListRequestsResponse(requests=map(outlook, page.items), next_page_token=page.next_page_token)


def outlook(item: Outlook) -> pb.Outlook:
    """How a request stands."""
    return pb.Outlook(
        request=item.request,
        context_id=item.context_id,
        tenant=item.tenant,
        model=item.model,
        state=item.state,
        priority=item.priority,
        nice=item.nice,
        arrived_at=item.arrived_at,
        queue_s=item.queue_s,
        position=item.position,
        is_position_least=item.is_position_least,
        tenant_position=item.tenant_position,
        contenders=map(contender, item.contenders),
        estimate=start_estimate(item.estimate),
        deferred_until=item.deferred_until,
        deadline=item.deadline,
        num_preemptions=item.num_preemptions,
        output_tokens=item.output_tokens,
        first_token_s=item.first_token_s,
        reason=item.reason,
        detail=item.detail,
        ended_at=item.ended_at,
        queue_until=item.queue_until,
    )


def contender(item: Contender) -> pb.Contender:
    """A tenant where the ways part."""
    return pb.Contender(
        tenant=item.tenant,
        is_own=item.is_own,
        weight=item.weight,
        factor_milli=item.factor_milli,
        lag_us=item.lag_us,
        service_us=item.service_us,
        num_waiting=item.num_waiting,
        num_running=item.num_running,
    )


def tenant_activity(item: TenantActivity) -> pb.TenantActivity:
    """What a tenant does just now."""
    return pb.TenantActivity(
        tenant=item.tenant,
        weight=item.weight,
        factor_milli=item.factor_milli,
        recent_us=item.recent_us,
        recent_share=item.recent_share,
        owed_us=item.owed_us,
        num_waiting=item.num_waiting,
        num_running=item.num_running,
        num_contexts=item.num_contexts,
        kv_device_bytes=item.kv_device_bytes,
    )


def start_estimate(item: StartEstimate) -> pb.StartEstimate:
    """When a request starts."""
    return pb.StartEstimate(seconds=item.seconds, error=item.error, num_judged=item.num_judged)
